"""What is kept between starts, in the user's cache folder and in one that `vllm-cli bake` has written."""
