"""The doctor's rules, a file per subject. Never: a reading not made through the view, a fix not written as data."""
