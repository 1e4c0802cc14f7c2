"""Constrained output through xgrammar. Imported only when the first constrained request arrives."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xgrammar as xgr
from torch import Tensor

from perilune.engine.request import Grammar
from perilune.errors import RequestError
from perilune.text.tokenizer import Tokenizer

# Between JSON tokens, as json.dumps writes them. Where any white space may stand, a weak model fills its answer with it
# and is cut off before the closing brace.
_ONE_LINE = (", ", ": ")
_COMPACT = (",", ":")


class GrammarCompiler:
    """Compiles grammars for one tokenizer; compiled ones are kept, so a repeated schema costs nothing."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop_ids: Iterable[int]) -> None:
        self.vocab = vocab
        spelled = tokenizer.vocabulary_bytes()[:vocab]
        info = xgr.TokenizerInfo(
            spelled, vocab_type=xgr.VocabType.RAW, vocab_size=vocab, stop_token_ids=[i for i in stop_ids if i < vocab]
        )
        self._compiler = xgr.GrammarCompiler(info, max_threads=1, cache_limit_bytes=64 * 2**20)

    def start(self, grammar: Grammar) -> GrammarConstraint:
        """A fresh position at the start of `grammar`. Raises RequestError if it does not compile."""
        try:
            if grammar.kind == "json_schema":
                separators = _COMPACT if grammar.compact else _ONE_LINE
                compiled = self._compiler.compile_json_schema(grammar.text, any_whitespace=False, separators=separators)
            elif grammar.kind == "json_object":
                compiled = self._compiler.compile_json_schema(
                    '{"type": "object"}', any_whitespace=False, separators=_ONE_LINE, strict_mode=False
                )
            elif grammar.kind == "regex":
                compiled = self._compiler.compile_regex(grammar.text)
            else:
                compiled = self._compiler.compile_grammar(grammar.text)
        except Exception as error:  # xgrammar raises plain RuntimeError and ValueError, by version
            raise RequestError(
                f"The {grammar.kind} does not compile.", str(error).strip().splitlines()[-1], param="grammar"
            ) from error
        return GrammarConstraint(xgr.GrammarMatcher(compiled), self.vocab)


class GrammarConstraint:
    """One answer's position in a grammar."""

    def __init__(self, matcher: xgr.GrammarMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._bitmask = xgr.allocate_token_bitmask(1, vocab)

    def mask(self, logits: Tensor) -> Tensor:
        """-inf where no token may follow. [V] -> [V]."""
        self._matcher.fill_next_token_bitmask(self._bitmask)
        if logits.device.type != "cpu":
            return logits.masked_fill(~unpacked(self._bitmask[0].to(logits.device), logits.shape[0]), float("-inf"))
        row = logits.clone()[None]
        xgr.apply_token_bitmask_inplace(row, self._bitmask)
        return row[0]

    def accept(self, token: int) -> None:
        accepted = self._matcher.accept_token(token)
        assert accepted, "a masked token was sampled"

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_terminated())


def unpacked(words: Tensor, size: int) -> Tensor:
    """int32 [ceil(size / 32)] -> bool [size], lowest bit first. In torch, since xgrammar's kernel for a GPU would be
    compiled while requests wait."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, None] >> bits) & 1).flatten()[:size].bool()
