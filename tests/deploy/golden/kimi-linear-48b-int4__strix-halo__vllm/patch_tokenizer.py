"""Repairs one import in a checkpoint's tokenizer. Does nothing where it is right already; keeps a copy of what it was.

`bytes_to_unicode` moved: transformers 5 no longer has it beside GPT-2's tokenizer, while `convert_slow_tokenizer` has
it in 4 and 5. Checkpoints made before import it from the old place and fail.
"""

import os
import shutil
import sys
from pathlib import Path

OLD = "from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode"
NEW = "from transformers.convert_slow_tokenizer import bytes_to_unicode"


def patch(file: Path) -> bool:
    """Whether the file had to be changed. The hub's cache holds links; the file behind one is changed."""
    file = file.resolve()
    text = file.read_text(encoding="utf-8")
    if OLD not in text:
        return False
    backup = file.with_name(file.name + ".orig")
    if not backup.exists():
        shutil.copy2(file, backup)
    new = file.with_name(file.name + ".new")
    new.write_text(text.replace(OLD, NEW), encoding="utf-8")
    os.replace(new, file)
    return True


def main(model: str) -> None:
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=["*.py", "*.json", "tiktoken.model", "*.jinja"]))
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    found = [*folder.glob("tokenization_*.py"), *(home / "modules").rglob("tokenization_*.py")]
    for file in found:
        print(f"{file}: {'changed' if patch(file) else 'nothing to do'}")
    if not found:
        print(f"{model} has no tokenizer code")


if __name__ == "__main__":
    main(sys.argv[1])
