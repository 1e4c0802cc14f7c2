"""How the built-in model is made: its text, its tokenizer, its training, its scores. Never part of the wheel."""
