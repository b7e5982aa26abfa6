"""Where the project lives. Edit here, then `make repository` rewrites the files that must spell it out."""

URL = "https://github.com/your_name/fbt"
BRANCH = "main"
