"""Make the built-in model: `tokenizer`, `train`, `export`, `eval`. See docs/builtin-model.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from builtin import export, shape, vocabulary
from builtin.network import Network
from builtin.train import Plan, Trainer

MODEL = Path(__file__).parents[1] / "src" / "perilune" / "builtin" / "model"
STATE = Path("~/.cache/perilune/train").expanduser()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of the training state")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("tokenizer", help="train the vocabulary and write tiktoken.model")
    actions.add_parser("start", help="write the checkpoint with random weights")
    actions.add_parser("export", help="write the checkpoint from the training state")
    train = actions.add_parser("train", help="train, or go on training")
    train.add_argument("--minutes", type=float, default=60)
    train.add_argument("--resume", action="store_true")
    train.add_argument("--compile", action="store_true", help="let torch.compile fuse the KDA layer (needs a C++ compiler)")
    for name, kind in (("steps", int), ("seed", int), ("muon_lr", float), ("adam_lr", float), ("decay", float)):
        train.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Plan, name))
    actions.add_parser("eval", help="held-out scores of the exported checkpoint")
    args = parser.parse_args()
    {"tokenizer": _tokenizer, "start": _start, "train": _train, "export": _export, "eval": _eval}[args.action](args)


def _tokenizer(args: argparse.Namespace) -> None:
    args.model.mkdir(parents=True, exist_ok=True)
    vocabulary.write(vocabulary.train(vocabulary.corpus()), args.model / "tiktoken.model")


def _start(args: argparse.Namespace) -> None:
    torch.manual_seed(1)
    export.write(Network(shape.config()), args.model)


def _train(args: argparse.Namespace) -> None:
    plan = Plan(steps=args.steps, seed=args.seed, muon_lr=args.muon_lr, adam_lr=args.adam_lr, decay=args.decay)
    trainer = Trainer(plan, vocabulary.load(args.model / "tiktoken.model").encode_ordinary)
    if args.compile:
        trainer.compile()
    if args.resume:
        trainer.load(args.state / "state.pt")
    print(plan, f"from step {trainer.step}", flush=True)
    trainer.run(args.state / "state.pt", args.minutes)


def _export(args: argparse.Namespace) -> None:
    trainer = Trainer(Plan(), vocabulary.load(args.model / "tiktoken.model").encode_ordinary)
    trainer.load(args.state / "state.pt")
    export.write(trainer.net, args.model)


def _eval(args: argparse.Namespace) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main()
