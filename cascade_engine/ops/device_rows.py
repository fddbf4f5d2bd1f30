"""Token rows and block tables on the device, and what the host knows to be there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_engine.ops.launch import Launcher

UNKNOWN = -1


class DeviceRows:
    """Copies of the host's rows `[rows, stride]` and block tables `[rows, pages]`.

    Kernels write tokens too: whoever launches them says what, or that it is not known (`wrote`,
    `forget`). So the next pass or action sends what the device lacks and nothing else.
    `tokens` `[rows, stride + room]` has room for a tree behind each row.
    """

    def __init__(
        self, launcher: Launcher, host_tokens: torch.Tensor, host_tables: torch.Tensor, room: int
    ) -> None:
        self._run = launcher
        self._host_tokens, self._host_tables = host_tokens, host_tables
        rows, stride = host_tokens.shape
        size, device = (rows, stride + room), launcher.device
        self.tokens = torch.zeros(size, dtype=torch.int32, device=device)
        self.tables = torch.zeros(host_tables.shape, dtype=torch.int32, device=device)
        self._known = torch.full((rows, stride), UNKNOWN, dtype=torch.int32)
        self._sent_tables = launcher.staging(*host_tables.shape, dtype=torch.int32)
        self._sent_tables.fill_(UNKNOWN - 1)

    def feed(self, rows: Sequence[int], starts: Sequence[int], fed: Sequence[torch.Tensor]) -> None:
        """Tokens (and nodes of trees behind them) for one pass, and the rows' block tables."""
        places, send = [], self._run.send
        for row, start, tokens in zip(rows, starts, fed, strict=True):
            first = row * self.tokens.shape[1] + start
            places.append(torch.arange(first, first + len(tokens)))
            self.wrote(row, start, tokens)
        self.tokens.view(-1).index_copy_(0, send(torch.cat(places)), send(torch.cat(list(fed))))
        slots = torch.tensor(list(rows))
        tables = self._host_tables[slots]
        self._sent_tables[slots] = tables
        self.tables.index_copy_(0, send(slots), send(tables))

    def send_tokens(self, row: int, length: int) -> None:
        """What the device lacks of a row's leading tokens."""
        host, known = self._host_tokens[row, :length], self._known[row, :length]
        if torch.equal(host, known):
            return
        first = int((host != known).nonzero()[0])
        self.tokens[row, first:length] = self._run.send(host[first:])
        known[first:] = host[first:]

    def send_table(self, row: int, pages: int) -> None:
        """Likewise of its block table. The copy is made by the next wait, and begins before the
        launches that follow."""
        table, sent = self._host_tables[row, :pages], self._sent_tables[row, :pages]
        if not torch.equal(table, sent):
            sent.copy_(table)
            self._run.upload(self.tables[row, :pages], sent)

    def wrote(self, row: int, start: int, tokens: torch.Tensor | Sequence[int]) -> None:
        """These tokens of the row are on the device."""
        known = self._known[row, start : start + len(tokens)]
        known.copy_(torch.as_tensor(tokens, dtype=torch.int32)[: len(known)])

    def forget(self, row: int, start: int, end: int) -> None:
        """Tokens start..end-1 may be anything."""
        self._known[row, start:end] = UNKNOWN
