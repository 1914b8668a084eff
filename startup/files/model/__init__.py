"""The model's files. `request` has the settings that name these files, and `file_plan` finds the files."""
