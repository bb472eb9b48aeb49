"""A few calls through the whole stack, with nothing but attn, torch and numpy: for environments without the
test tools, such as another torch release (scripts/smoke_other_torch.sh). Run as a script.
"""

import torch

import attn


def merge_states() -> None:
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(3, 2, 4, 33, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    lses = torch.randn(3, 2, 4, 33, generator=generator, dtype=torch.float64, requires_grad=True)
    out, lse = attn.merge_states(outs, lses)
    expected = (lses.softmax(0)[..., None] * outs).sum(0), lses.logsumexp(0)
    torch.testing.assert_close((out, lse), expected)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    actual = torch.autograd.grad((out, lse), (outs, lses), (dout, dlse))
    torch.testing.assert_close(actual, torch.autograd.grad(expected, (outs, lses), (dout, dlse)))


def refusal() -> None:
    for call in (
        lambda: torch.ops.attn.merge_states(torch.zeros(2, 3), torch.zeros(4)),
        lambda: attn.merge_states(torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2)),
    ):
        text = "a wrong call went through"
        try:
            call()
        except RuntimeError as error:
            text = str(error)
        assert "merge_states" in text, text


def traced() -> None:
    outs, lses = torch.randn(3, 5, 8), torch.randn(3, 5)
    step = torch.compile(lambda o, l: attn.merge_states(2 * o, l), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(outs, lses), attn.merge_states(2 * outs, lses))
    meta = attn.merge_states(outs.to("meta"), lses.to("meta"))
    assert [x.shape for x in meta] == [(5, 8), (5,)]


if __name__ == "__main__":
    print(attn.info())
    for check in (merge_states, refusal, traced):
        check()
        print("ok", check.__name__)
