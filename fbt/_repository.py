"""The address of the project; after a change, run `make repository`."""

URL = "https://github.com/your_name/fbt"
BRANCH = "main"
PLACEHOLDER = "your_name"  # the owner until there is one
