"""The chunked log-probability function against autograd, for every option, with torch's operators and the C kernels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ladder.kernels import layers
from ladder.kernels.library import why
from ladder.models import logprobs
from ladder.models.logprobs import token_logps


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 70, 1 << 20])
@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy", [False, True])
def test_against_autograd(keep, chunk, cap, scale, bias, temperature, entropy, monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "KEEP", keep)
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    torch.manual_seed(0)
    N, D, V = 9, 5, 7
    h = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    w = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    b = torch.randn(V, dtype=torch.float64, requires_grad=True) if bias else None
    t = torch.randint(0, V, (N,))
    g_logp, g_ent = torch.randn(N, dtype=torch.float64), torch.randn(N, dtype=torch.float64)

    z = torch.nn.functional.linear(h, w, b) * scale
    if cap:
        z = cap * torch.tanh(z / cap)
    logp_all = (z / temperature).log_softmax(-1)
    want_logp = logp_all.gather(1, t[:, None])[:, 0]
    want_ent = -(logp_all.exp() * logp_all).sum(-1)
    leaves = [h, w] + ([b] if b is not None else [])
    objective = (want_logp * g_logp).sum() + ((want_ent * g_ent).sum() if entropy else 0)
    want = torch.autograd.grad(objective, leaves)

    head = SimpleNamespace(weight=w, bias=b, scale=scale, softcap=cap)
    logp, ent = token_logps(h, head, t, temperature=temperature, entropy=entropy)  # pyright: ignore
    objective = (logp * g_logp).sum() + ((ent * g_ent).sum() if ent is not None else 0)
    torch.testing.assert_close(logp, want_logp, atol=1e-12, rtol=0)
    if entropy:
        torch.testing.assert_close(ent, want_ent, atol=1e-12, rtol=0)
    for got, expected in zip(torch.autograd.grad(objective, leaves), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy", ["none", "logged", "trained"])
@pytest.mark.parametrize("V", [7, 64, 5003])
def test_c_kernels_against_float64(keep, frozen, bias, temperature, entropy, V, monkeypatch) -> None:
    if layers.kernels() is None:
        pytest.skip(str(why("layers")))
    monkeypatch.setattr(logprobs, "KEEP", keep)
    monkeypatch.setattr(logprobs, "CHUNK", 4 * V)
    torch.manual_seed(0)
    N, D = 9, 5
    h, w, b, t = torch.randn(N, D), 4 * torch.randn(V, D), torch.randn(V), torch.randint(0, V, (N,))
    g_logp, g_ent = torch.randn(N), torch.randn(N) * (entropy == "trained")
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = [h.to(dtype).requires_grad_(), *(x.to(dtype).requires_grad_(not frozen) for x in (w, b))]
        head = SimpleNamespace(weight=leaves[1], bias=leaves[2] if bias else None, scale=0.5, softcap=0.0)
        logp, ent = token_logps(leaves[0], head, t, temperature=temperature, entropy=entropy != "none")  # pyright: ignore
        objective = (logp * g_logp).sum() + (0 if ent is None else (ent * g_ent).sum())
        trainable = [x for x in leaves[: 2 + bias] if x.requires_grad]
        first, second = (torch.autograd.grad(objective, trainable, retain_graph=True) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        with torch.no_grad():
            logp_no_grad, _ = token_logps(leaves[0], head, t, temperature=temperature)  # pyright: ignore
        torch.testing.assert_close(logp_no_grad, logp, atol=1e-6, rtol=1e-6)
        results.append([logp, *([] if ent is None else [ent]), *first])
    for want, got in zip(*results, strict=True):
        assert float((got.detach() - want.detach()).abs().max() / want.detach().abs().max()) < 1e-5


def test_the_c_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if layers.kernels() is None:
        pytest.skip(str(why("layers")))
    calls = []
    logps = layers.logps
    monkeypatch.setattr(layers, "logps", lambda *a: calls.append(1) or logps(*a))
    head = SimpleNamespace(weight=torch.randn(7, 5), bias=None, scale=1.0, softcap=0.0)
    token_logps(torch.randn(3, 5), head, torch.tensor([0, 1, 2]))  # pyright: ignore
    assert calls


def test_shapes_and_temperature_are_checked() -> None:
    head = SimpleNamespace(weight=torch.zeros(3, 2), bias=None, scale=1.0, softcap=0.0)
    with pytest.raises(ValueError, match="targets"):
        token_logps(torch.zeros(4, 2), head, torch.zeros(3, dtype=torch.int64))  # pyright: ignore
    with pytest.raises(ValueError, match="temperature"):
        token_logps(torch.zeros(1, 2), head, torch.zeros(1, dtype=torch.int64), temperature=0.0)  # pyright: ignore
