"""What a reader looks at: figures, and the package's own source."""
