"""The model's files: `location` finds them, `hub` downloads them, `checkpoint_folder` checks a folder."""
