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


def attention() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, h, 200, 24, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    scores = q @ k.repeat_interleave(2, 1).mT * 24**-0.5
    hidden = torch.ones(200, 200, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    dout = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, dout)
    for function in (attn.attention, lambda *x, causal: attn.hip_attention(*x, causal=causal, mask_k=256)):
        out = function(q, k, v, causal=True)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, leaves, dout), wanted)
    raw = torch.ops.attn.hip_forward(q.float(), k.float(), v.float())
    assert [x.dtype for x in raw] == [torch.float32, torch.float32, torch.int32, torch.int32]


if __name__ == "__main__":
    print(attn.info())
    for check in (merge_states, refusal, traced, attention):
        check()
        print("ok", check.__name__)
