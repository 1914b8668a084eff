"""The model's files: `request` says what is wanted, `file_plan` which files these are and where."""
