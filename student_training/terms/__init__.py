"""Terms of a loss, whatever the samples are: what they read, what a student gives them, how they are checked and summed."""
