"""Products, softmax, norms, maxima: what has a rule that mixes numbers."""

from __future__ import annotations

from tests.fuzz.forms.form import forms

#: Forms for any number of dimensions.
ANYWHERE = forms(
    "[[torch.softmax|F.softmax|F.log_softmax|torch.log_softmax|F.softmin]]({a}, dim={d})",
    "{a}.[[softmax|log_softmax]]({d})",
    "torch.logsumexp({a}, {d}, keepdim={flag})",
    "F.layer_norm({a}, ({C},)[[|, eps=0.1]])",
    "F.rms_norm({a}, ({C},), eps=0.1)",
    "F.normalize({a}, dim={d})",
    "torch.[[var|std]]({a}, dim={d}, correction=0, keepdim={flag}) + {f}",
    "{a}.[[var|std]]({d}, unbiased=False)",
    "torch.[[var_mean|std_mean]]({a}, dim={d}, correction=0)[{flag}]",
    "F.normalize({a}, p=1, dim={d}, eps=0.1)",
    "torch.linalg.vector_norm({a}, [[1|2|float('inf')]], dim={d})",
    "{a}.norm([[1|2]], {d})",
    "torch.[[amax|amin]]({a}, dim={d}, keepdim={flag})",
    "{a}.[[max|min]]({d})[0]",
    "{a}.[[max|min]]({d}).values",
    "{a}.prod({d})",
    "torch.cumprod({a}, {d})",
    "F.cosine_similarity({a}, {b}, dim={d})",
    "F.pairwise_distance({a}, {b})",
    "F.glu(torch.cat([{a}, {b}], -1))",
    "F.prelu({a}, torch.full((1,), 0.2).to({a}))",
    "F.rrelu({a})",
    "F.local_response_norm({a}, 2)",
    "{a} @ {b}.mT",
    "torch.matmul({a}, {a}.mT)",
    "torch.einsum('b...c,b...c->b...', {a}, {b})",
    "torch.einsum('bi...,bj...->bij', {a}.flatten(1), {b}.flatten(1))",
    "torch.linalg.vecdot({a}, {b}, dim={d})",
    "F.bilinear({a}, {b}, torch.ones(2, {C}, {C}).to({a}))",
    "torch.special.logsumexp({a}, {d})",
    "{a} * {a}.sigmoid()",
    "{a} / (1 + {a}.abs())",
    "{a} / {a}.exp().sum({d}, keepdim=True)",
    "({a} - {a}.mean({d}, keepdim=True)) / ({a}.std({d}, correction=0, keepdim=True) + 0.1)",
    "{a} * {b} * {a}",
    "({a} * {b}).relu_()",
    "{a}.exp().mul_({b})",
    "torch.tanh({a}) * torch.sigmoid({b}) + {a}",
    "torch.logaddexp({a}, {c})",
    "torch.kron({a}, torch.linspace(-1, 1, 2).to({a}))",
)
#: Forms for a batch of sequences, (B, T, C).
SEQUENCES = forms(
    "F.max_pool1d({a}, 2, 1)",
    "F.adaptive_max_pool1d({a}, 2)",
    "F.max_pool1d({a}, 2, [[1|2]], padding=1)",
    "torch.bmm({a}, {b}.transpose(1, 2))",
    "F.scaled_dot_product_attention({a}, {b}, {a})",
    "F.scaled_dot_product_attention({a}, {a}, {b}, is_causal=True)",
    "torch.baddbmm({a} @ {b}.mT, {a}, {b}.mT)",
    "torch.softmax({a} @ {b}.mT, -1) @ {a}",
    "F.instance_norm({a}, eps=0.1)",
    "F.group_norm({a}, 1, eps=0.1)",
    "torch.einsum('btc,bsc->bts', {a}, {b})",
    "torch.einsum('btc,btc->bt', {a}, {b})",
    "torch.cross({a}[..., :1].expand(-1, -1, 3), {b}[..., :1].repeat(1, 1, 3) * "
    "torch.arange(3).to({a}), dim=-1)",
    "torch.stack([h for h in torch.tanh({a}).unbind(1)], 1).amax(1)",
    "F.max_pool2d({a}[:, None], (1, 2), 1)",
    ranks=(3,),
)
