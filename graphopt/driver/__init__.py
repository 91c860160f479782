"""What the commands do, without the command line: configuration, data, the run itself, gates."""
