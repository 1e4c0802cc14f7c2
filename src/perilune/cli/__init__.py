"""One file per command. Never: logic; a command parses, calls and prints."""
