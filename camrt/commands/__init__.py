"""What `camrt` runs: a module for a command, or for a family of them. `camrt.cli` puts them together."""
