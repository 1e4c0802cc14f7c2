"""Make the built-in model: `tokenizer`, `train`, `export`, `eval`. See docs/builtin-model.md."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

# Before torch loads OpenMP: on a shared machine, threads that lost their core must sleep, not spin (80 x measured).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from builtin import export, scores, shape, vocabulary
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
    begin = train.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on from the training state")
    begin.add_argument("--from-checkpoint", action="store_true", help="start from the exported weights, no warm steps")
    for name, kind in (("steps", int), ("seed", int), ("muon_lr", float), ("adam_lr", float), ("decay", float)):
        train.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Plan, name))
    evaluate = actions.add_parser("eval", help="held-out scores of the exported checkpoint")
    evaluate.add_argument("--from-state", action="store_true", help="score the training state, rounded")
    evaluate.add_argument("--count", type=int, default=400, help="problems and texts per score")
    evaluate.add_argument("--show", type=int, default=0, help="wrong answers to print for each score")
    evaluate.add_argument("--json", type=Path, help="also write the scores here")
    sample = actions.add_parser("samples", help="write held-out samples with the model's answers, as JSON lines")
    sample.add_argument("path", type=Path)
    sample.add_argument("--count", type=int, default=20, help="per skill")
    args = parser.parse_args()
    act = {
        "tokenizer": _tokenizer,
        "start": _start,
        "train": _train,
        "export": _export,
        "eval": _eval,
        "samples": _samples,
    }
    act[args.action](args)


def _tokenizer(args: argparse.Namespace) -> None:
    args.model.mkdir(parents=True, exist_ok=True)
    vocabulary.write(vocabulary.train(vocabulary.corpus()), args.model / "tiktoken.model")


def _start(args: argparse.Namespace) -> None:
    torch.manual_seed(1)
    export.write(Network(shape.config()), args.model)


def _train(args: argparse.Namespace) -> None:
    plan = Plan(steps=args.steps, seed=args.seed, muon_lr=args.muon_lr, adam_lr=args.adam_lr, decay=args.decay)
    if args.from_checkpoint:
        plan = replace(plan, warm_steps=0)
    trainer = Trainer(plan, vocabulary.load(args.model / "tiktoken.model").encode_ordinary)
    if args.from_checkpoint:
        export.read(trainer.net, args.model)
    if args.resume:
        trainer.load(args.state / "state.pt")
    print(plan, f"from step {trainer.step}", flush=True)
    trainer.run(args.state / "state.pt", args.minutes)


def _export(args: argparse.Namespace) -> None:
    trainer = Trainer(Plan(), vocabulary.load(args.model / "tiktoken.model").encode_ordinary)
    trainer.load(args.state / "state.pt")
    export.write(trainer.net, args.model)


def _eval(args: argparse.Namespace) -> None:
    encoding = vocabulary.load(args.model / "tiktoken.model")
    net = Network(shape.config())
    if args.from_state:
        net.load_state_dict(torch.load(args.state / "state.pt")["net"])
        export.rounded(net)
    else:
        export.read(net, args.model)
    found: dict[str, float] = {}
    for name, check in scores.skills(net, encoding, args.count).items():
        checked = check()
        found[name] = scores.share(checked)
        print(f"{name}: {found[name]:.4f} of {len(checked)}", flush=True)
        for wrong in [c for c in checked if not c.right][: args.show]:
            print(f"    {wrong.turn.question[-80:]!r} -> {wrong.said!r}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _samples(args: argparse.Namespace) -> None:
    net = Network(shape.config())
    export.read(net, args.model)
    lines = []
    for name, check in scores.skills(net, vocabulary.load(args.model / "tiktoken.model"), args.count).items():
        checked = check()
        # Questions come in the order of their topics: take some of everywhere.
        for c in checked[:: max(1, len(checked) // args.count)][: args.count]:
            entry = {
                "skill": name,
                "question": c.turn.question,
                "answer": c.turn.answer,
                "said": c.said,
                "right": c.right,
            }
            lines.append(json.dumps(entry) + "\n")
    args.path.write_text("".join(lines))


if __name__ == "__main__":
    main()
