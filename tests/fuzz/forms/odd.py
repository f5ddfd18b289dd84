"""Code around a layer that does more than compute: state, types, hooks, names, places."""

from __future__ import annotations

from tests.fuzz.forms.form import Form

_G = "self.{m} = nn.[[GRU|LSTM|RNN]]({C}, {C}, batch_first=True)"
_T = "self.{m} = [[nn.Tanh()|nn.Linear({C}, {C})|nn.Sequential(nn.Linear({C}, {C}), nn.ReLU())]]"
_SCALED = (
    "class Scaled{m}(nn.Module):\n    def forward(self, x, *, scale=1.0, extra=None):\n        "
    "return {'out': torch.tanh(x) * scale, 'pair': (x, extra)}\n"
)
_CUBE = (
    "class Cube{m}(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n"
    "        ctx.save_for_backward(x)\n        return x ** 3\n\n    @staticmethod\n"
    "    def backward(ctx, grad):\n        return 3 * grad * ctx.saved_tensors[0] ** 2\n"
)
_DECORATED = (
    "def doubled{m}(function):\n    @functools.wraps(function)\n    def inner(*args, **kwargs):\n"
    "        return 2 * function(*args, **kwargs)\n    return inner\n\n\n@doubled{m}\ndef decorated{m}(x):\n"
    "    return torch.tanh(x)\n"
)
_RECORD = "@dataclasses.dataclass\nclass Record{m}:\n    out: torch.Tensor\n    state: object = None\n"
_HOLDER = (
    "class Holder{m}:\n    def __init__(self, layer):\n        self.layers = [layer]\n        "
    "self.last = None\n"
)
_MEMORY = "MEMORY{m} = {'calls': 0}\n"
_MAKE = (
    "def make{m}(layer):\n    seen = []\n\n    def run(x):\n        seen.append(x.shape[0])\n  "
    "      return layer(x) + len(seen)\n\n    return run\n"
)


def _odd(text: str, init: str = "", top: str = "", exact: bool | None = True, **options: bool) -> Form:
    return Form(text, init, top, (3,), exact, **options)


#: Forms for a batch of sequences.
ODD = [
    # State between calls.
    _odd("{new} = self.{m}({a})[0] + self.{m}_n\nself.{m}_n = self.{m}_n + 1", _G + "\nself.{m}_n = 0"),
    _odd(
        "self.{m}_count += 1\n{new} = torch.tanh({a}) * self.{m}_count",
        "self.register_buffer('{m}_count', torch.zeros(()))",
    ),
    _odd("{new} = torch.tanh({a})\nself.{m}_seen.append({new}.shape[0])", "self.{m}_seen = []"),
    _odd(
        "self.{m}_memory['n'] = self.{m}_memory.get('n', 0) + 1\n{new} = {a}.sin() + self.{m}_memory['n']",
        "self.{m}_memory = {}",
    ),
    _odd("MEMORY{m}['calls'] += 1\n{new} = torch.tanh({a}) + MEMORY{m}['calls']", "", _MEMORY),
    _odd(
        "{new}, self.{m}_state = self.{m}({a}, self.{m}_state if self.{m}_state is not None and "
        "self.{m}_state.shape[1] == {a}.shape[0] else None)",
        "self.{m} = nn.GRU({C}, 2, batch_first=True)\nself.{m}_state = None",
    ),
    _odd("self.{m}({a})", "self.{m} = make{m}(nn.[[Tanh()|Linear({C}, {C})]])", _MAKE),
    _odd("{new} = {a} * 2\nself.{m}_last = {new}.detach()\n{new} = {new}.tanh()", "self.{m}_last = None"),
    _odd("{new} = {a} + self.{m}_cache.setdefault('bias', torch.ones({C}).to({a}))", "self.{m}_cache = {}"),
    # Places of layers.
    _odd(
        "self.{m}.layers[0]({a})[0]",
        _G.replace("self.{m} =", "self.{m}_g =") + "\nself.{m} = Holder{m}(self.{m}_g)",
        _HOLDER,
    ),
    _odd(
        "{new} = self.{m}.layers[0]({a})\nself.{m}.last = {new}", "self.{m} = Holder{m}(nn.Tanh())", _HOLDER
    ),
    _odd(
        "self.{m}['b'](self.{m}['a']({a}))",
        "self.{m} = nn.ModuleDict({'a': nn.Linear({C}, {k}), 'b': nn.Tanh()})",
    ),
    _odd(
        "{new} = {a}\nfor layer in self.{m}:\n    {new} = layer({new}) + {new}",
        "self.{m} = nn.ModuleList([nn.Linear({C}, {C}), nn.Tanh(), nn.Softmax(-1)])",
    ),
    _odd(
        "{new} = {a}\nfor layer, _ in zip(self.{m}, range(2)):\n    {new} = layer({new})[0]",
        "self.{m} = nn.ModuleList(nn.GRU({C}, {C}, batch_first=True) for _ in range(2))",
    ),
    _odd("self.{m}({a}) + self.{m}_twin({a} * 2)", _T + "\nself.{m}_twin = self.{m}"),
    _odd("self.{m}_run({a})[0]", _G + "\nself.{m}_run = self.{m}.forward"),
    _odd("self.{m}({a})[0]", _G + "\nself.{m}.weight_ih_l0.requires_grad_(False)"),
    _odd("self.{m}({a})[0] @ self.{m}.weight_hh_l0.sum(0)[:, None]", _G),
    _odd("F.linear({a}, self.{m}.weight) + self.{m}.bias.exp()", "self.{m} = nn.Linear({C}, {C})"),
    # Types, names, flags.
    _odd("{new} = self.{m}({a})\n{new} = {new}[0] if isinstance(self.{m}, nn.RNNBase) else {new}", _G),
    _odd("self.{m}({a})[0] if type(self.{m}) is nn.GRU else self.{m}({a})[0] * 2", _G, exact=None),
    _odd("self.{m}({a})[0] if self.{m}.__class__.__name__ == 'GRU' else {a}", _G, exact=None),
    _odd(
        "{new} = self.{m}({a})\n{new} = {new}[0] if isinstance({new}, tuple) else {new}",
        _T.replace("]]", "|nn.GRU({C}, {C}, batch_first=True)]]", 1),
    ),
    _odd("{a}.tanh() if self.training else {a}.sigmoid()"),
    _odd("{a} * sum(p.numel() for p in self.{m}.parameters())", _T),
    _odd("{a}.tanh() * (2 if torch.is_grad_enabled() else 3)", exact=None, unstable=True),
    _odd("{a}.tanh() * (2 if {a}.requires_grad else 3)", exact=None, unstable=True),
    _odd("{a} * {a}.shape[0]", exact=None, unstable=True),
    _odd("{a} * {f} if {a}.dtype == torch.float64 else {a} * 9"),
    # Forms of calls and results.
    _odd(
        "self.{m}({a}, scale={f}, extra={b})['out'] + self.{m}(x={a})['pair'][0]",
        "self.{m} = Scaled{m}()",
        _SCALED,
    ),
    _odd("{new} = Record{m}(torch.tanh({a}))\n{new} = {new}.out * 2", "", _RECORD),
    _odd("decorated{m}({a})", "", _DECORATED),
    _odd("functools.partial(torch.softmax, dim={d})({a})"),
    _odd("functools.reduce(torch.add, {a}.unbind(1))"),
    _odd("(lambda y: y.tanh() * y)({a})"),
    _odd("getattr({a}, '[[tanh|sigmoid|exp]]')()"),
    _odd("[each.tanh() for each in {a}.split(1, 1)][-1]"),
    _odd("{new} = {'h': {a}}\n{new} = {'k': {new}['h'].exp(), **{new}}['k']"),
    _odd("torch.jit.script(torch.tanh)({a}) if False else {a}.tanh()"),
    _odd("try:\n    {new} = {a} @ {a}\nexcept RuntimeError:\n    {new} = {a}.tanh()", exact=None),
    _odd("{new} = np.tanh({a})", exact=None),
    _odd("torch.as_tensor(np.tanh({a}.detach().numpy()))", exact=None),
    # Autograd.
    _odd("Cube{m}.apply({a})", "", _CUBE, exact=None),
    _odd("with torch.no_grad():\n    {new} = {a}.tanh()", exact=None),
    _odd("with torch.no_grad():\n    scale = torch.ones({C}).to({a}).cumsum(0)\n{new} = ({a} * scale).sin()"),
    _odd("{a} - {a}.detach()", exact=None),
    _odd("with torch.enable_grad():\n    {new} = {a}.tanh()"),
    _odd(
        "with torch.enable_grad():\n    y = {a}.detach().requires_grad_()\n    {new} = "
        "torch.autograd.grad(y.pow(3).sum(), y)[0]",
        exact=None,
    ),
    _odd(
        "{new} = {a} * 1\n[[if {new}.requires_grad:\n    {new}.register_hook(lambda g: g * 2)|"
        "{new}.retain_grad() if {new}.requires_grad else None]]",
        exact=None,
    ),
    # Writes in place, other names for the same memory.
    _odd("{new} = {a}.clone()\n{new}[:, 0] = {b}[:, -1].tanh()"),
    _odd(
        "{new} = torch.zeros_like({a})\nfor t in range({T}):\n    {new}[:, t] = torch.tanh({a}[:, "
        "t] * (t + 1))"
    ),
    _odd("{new} = {a}.clone()\nview = {new}[:, 0]\nview.mul_(2)\n{new} = {new} * view[:, None]"),
    _odd(
        "{new} = {a}.clone()\nrows = {new}.view({new}.shape[0], -1)\nrows += rows.flip(1)\n{new} = "
        "{new}.tanh()"
    ),
    _odd("{new} = {a} + 0\nfor each in {new}.unbind(1):\n    each.sigmoid_()", exact=None),
    _odd("{new} = {a}.clone()\n{new} += {new}\n{new} *= {b}\n{new} -= {new}.mean(-1, keepdim=True)"),
    _odd("{new} = torch.empty_like({a})\ntorch.tanh({a}.detach(), out={new})", exact=None),
    _odd(
        "{new} = {a}.clone()\n{new}.[[fill_diagonal_(0)|zero_()|fill_(0.5)|clamp_(-1, 1)|t().relu_()]]",
        exact=None,
    ),
    _odd("{new} = {a}.clone()\n{new}[..., {i}] += 1\n{new}[:, 1:] *= {new}[:, :-1].clone()"),
    _odd("{new} = {a}.clone()\n{new}[{new} > 0] = {f}", exact=None),
    _odd("{new} = {a}.clone()\n{new}.masked_fill_(torch.arange({C}) == 0, {f}).transpose(1, 2).add_(1)"),
    _odd("{new} = {a}.mul_([[1|2]])"),
    # Hooks and weights that are made.
    _odd("self.{m}({a})", _T + "\nself.{m}.register_forward_hook(lambda module, args, out: out * 2)"),
    _odd("self.{m}({a})", _T + "\nself.{m}.register_forward_pre_hook(lambda module, args: (args[0] + 1,))"),
    _odd(
        "self.{m}({a})[0]",
        _G + "\nself.{m}.register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))",
        exact=None,
    ),
    _odd(
        "self.{m}({a})",
        "self.{m} = nn.utils.parametrizations.[[weight_norm|spectral_norm]](nn.Linear({C}, {k}))",
        exact=None,
    ),
    _odd(
        "self.{m}({a})[0]",
        _G + "\nnn.utils.parametrizations.weight_norm(self.{m}, 'weight_hh_l0')",
        exact=None,
    ),
    _odd(
        "self.{m}({a})",
        "self.{m} = torch.jit.script(nn.Sequential(nn.Linear({C}, {k}), nn.Tanh()))",
        exact=None,
    ),
    # Random numbers.
    _odd("{a} + torch.rand(1).to({a}) * 0", exact=None),
    _odd("{a} * torch.rand({C}).to({a})", exact=None, unstable=True),
    _odd("F.dropout({a}, 0.5, training=True)", exact=None, unstable=True),
    _odd("{new} = {a} * torch.randn({C}, generator=torch.Generator().manual_seed(3)).to({a})"),
]
