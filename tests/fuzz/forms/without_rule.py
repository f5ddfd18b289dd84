"""What has no rule, and what hangs on the values: its errors must name it."""

from __future__ import annotations

from tests.fuzz.forms.form import forms

#: Forms for any number of dimensions.
ANYWHERE = forms(
    "{a}.sort({d})[0]",
    "torch.sort({a}, descending=True)[0]",
    "{a}.median({d})[0]",
    "torch.msort({a}.transpose(0, -1)).transpose(0, -1)",
    "torch.[[cummax|cummin]]({a}, {d})[0]",
    "{a}.topk(1, {d})[0]",
    "{a}.kthvalue(1, {d})[0]",
    "{a}.mode({d})[0]",
    "{a}.quantile(0.3, {d})",
    "{a}.nanmedian({d})[0]",
    "torch.logcumsumexp({a}, {d})",
    "torch.[[argmax|argmin]]({a}, {d}).to({a})",
    "{a}.detach()",
    "{a}.data",
    "torch.tensor({a}.tolist()).to({a})",
    "torch.from_numpy({a}.detach().numpy())",
    "{a}.long().to({a})",
    "{a}.int().to({a}) * 0.5",
    "({a} > 0).to({a})",
    "torch.where({a} > 0, {a}, {b})",
    "{a} * ({b} > 0)",
    "{a}.masked_fill({a} > 0.5, {f})",
    "torch.heaviside({a}, torch.ones(()).to({a}))",
    "{a}.gather(-1, {a}.argmax(-1, keepdim=True))",
    "torch.linalg.matrix_norm({a}.flatten(1)[:, None] @ {a}.flatten(1)[:, :, None] + 1)[:, None]",
    "torch.cdist({a}.flatten(1)[:, None], {b}.flatten(1)[:, None])",
    "torch.linalg.inv(torch.diag_embed({a}.flatten(1).exp()))",
    "torch.linalg.det(torch.diag_embed({a}.flatten(1)[:, :3].exp()))[:, None]",
    "torch.matrix_exp(torch.diag_embed({a}.flatten(1)[:, :2] * 0.1))",
    "torch.linalg.cholesky(torch.diag_embed({a}.flatten(1).exp()))",
    "torch.vmap(lambda row: row[[.sin()| * 2|.sum()]])({a})",
    "torch.utils.checkpoint.checkpoint(torch.tanh, {a}, use_reentrant=False)",
    "torch.polar({a}.abs() + 0.1, {b}).real",
    "torch.complex({a}, {b}).[[abs()|angle()|exp().real]]",
    "{a}.view(torch.int64).view(torch.float64)",
    "torch.func.vmap(torch.func.grad(lambda row: (row ** 3).sum()))({a})",
    "torch.nextafter({a}, {b})",
    "{a}.sort(-1)[1].to({a})",
    "{a}[torch.arange({a}.shape[0]), ..., {a}.flatten(1).argmax(1) % {C}]",
    "torch.bucketize({a}, torch.tensor([-1.0, 0.0, 1.0]).to({a})).to({a})",
    "F.lp_pool1d({a}.abs() + 0.1, 2, 2)",
    # Losses, of each row.
    "F.[[mse_loss|l1_loss|smooth_l1_loss|huber_loss|soft_margin_loss]]({a}, {b}, reduction='none')",
    "F.kl_div({a}.log_softmax(-1), {b}.softmax(-1), reduction='none')",
    "F.gaussian_nll_loss({a}, {b}, {b}.exp(), reduction='none')",
    "F.binary_cross_entropy_with_logits({a}, {b}.sigmoid(), reduction='none')",
    "torch.renorm({a} * 0.001, 2, 0, 1e6)",
    "F.multi_margin_loss({a}.flatten(1), torch.zeros({a}.shape[0], dtype=torch.long), "
    "reduction='none')[:, None]",
    "F.cross_entropy({a}.flatten(1), torch.zeros({a}.shape[0], dtype=torch.long), reduction='none')[:, None]",
    "F.triplet_margin_loss({a}, {b}, {a} * {f}, reduction='none')[:, None]",
    "F.cosine_embedding_loss({a}.flatten(1), {b}.flatten(1), torch.ones(1), reduction='none')[:, None]",
    exact=None,
)
#: What torch.fx cannot follow, for any number of dimensions.
CONTROL = forms(
    "{a} * 2 if {a}.sum() > 0 else {a} - 1",
    "{new} = {a}\nif bool(({a} > 5).any()):\n    {new} = {new} * 2",
    "{new} = {a}\nwhile {new}.abs().max() > 2:\n    {new} = {new} * 0.5",
    "{new} = {a} * float({a}.abs().max() < 1e6)",
    "{new} = {a}\nfor t in range(int({a}.abs().max()) % 3):\n    {new} = torch.tanh({new})",
    "{a} + {a}.sum().item() * 0",
    "{new} = {a} * 1\nassert {new}.isfinite().all(), 'finite'",
    "{new} = {a} * (2 if {a}[0].sum() > 100 else 3)",
    exact=None,
)
