"""The model's files: `request` has what is wanted, `file_plan` finds which files these are and where."""
