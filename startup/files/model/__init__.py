"""The model's files. `request` has the settings that name them, and `file_plan` finds them."""
