"""Layers of torch's, recurrent ones among them, with options."""

from __future__ import annotations

from tests.fuzz.forms.form import Form

_RNN = "[[nn.LSTM|nn.GRU|nn.RNN]]({C}, {k}, [[1|2|3]], bias={flag}, batch_first=True"
_PACKED = (
    "packed = nn.utils.rnn.pack_padded_sequence({a}, torch.full(({a}.size(0),), {T}), batch_first=True, "
    "enforce_sorted={flag})\n"
    "{new} = nn.utils.rnn.pad_packed_sequence(self.{m}(packed)[0], batch_first=True)[0]"
)
_LOOP = (
    "h = {a}.new_zeros({a}.shape[0], {k})\n"
    "[[for t in range({a}.shape[1]):|for t in range({T}):]]\n"
    "    h = self.{m}({a}[:, t], h)\n"
    "{new} = h"
)
_LSTM_LOOP = (
    "h = c = torch.zeros([[len({a})|{a}.shape[0]]], {k}).to({a})\n"
    "for each in {a}.unbind(1):\n"
    "    h, c = self.{m}(each, (h, c))\n"
    "{new} = torch.cat([h, c], -1)"
)
#: Recurrent layers, for a batch of sequences.
RECURRENT = [
    Form("self.{m}({a})[0]", f"self.{{m}} = {_RNN})", ranks=(3,)),
    Form("self.{m}({a})[0][:, -1]", f"self.{{m}} = {_RNN}, bidirectional=True)", ranks=(3,)),
    Form("self.{m}({a})[0]", f"self.{{m}} = {_RNN}, dropout=0.5, bidirectional={{flag}})", ranks=(3,)),
    Form("self.{m}({a})[1][0][-1]", "self.{m} = nn.LSTM({C}, {k}, batch_first=True)", ranks=(3,)),
    Form(
        "self.{m}({a})[1][1].transpose(0, 1)", "self.{m} = nn.LSTM({C}, {k}, 2, batch_first=True)", ranks=(3,)
    ),
    Form("self.{m}({a})[1].transpose(0, 1)", "self.{m} = nn.GRU({C}, {k}, 2, batch_first=True)", ranks=(3,)),
    Form(
        "self.{m}({a})[0]",
        "self.{m} = nn.LSTM({C}, 3, proj_size={k}, bidirectional={flag}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}.transpose(0, 1))[0].transpose(0, 1)",
        "self.{m} = [[nn.LSTM|nn.GRU|nn.RNN]]({C}, {k}, bias={flag})",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}, {a}.new_zeros(1, {a}.shape[0], {k}) + {f})[0]",
        "self.{m} = nn.[[GRU|RNN]]({C}, {k}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}, hx={a}[:, :1, :1].transpose(0, 1).repeat(1, 1, {k}).contiguous())[0]",
        "self.{m} = nn.[[GRU|RNN]]({C}, {k}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}, 2 * ({a}[None, :, 0].contiguous(),))[0]",
        "self.{m} = nn.LSTM({C}, {C}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a})[0]", "self.{m} = nn.RNN({C}, {k}, nonlinearity='relu', batch_first=True)", ranks=(3,)
    ),
    Form(
        "self.{m}(self.{m}({a})[0])[0]",
        "self.{m} = nn.[[LSTM|GRU|RNN]]({C}, {C}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a})[0] + self.{m}({a}.flip(1))[0]",
        "self.{m} = nn.[[LSTM|GRU]]({C}, {k}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "torch.stack([self.{m}(row)[0] for row in {a}])",
        "self.{m} = nn.[[LSTM|GRU]]({C}, {k})",
        exact=None,
        ranks=(3,),
    ),
    Form(
        _PACKED,
        "self.{m} = nn.[[LSTM|GRU|RNN]]({C}, {k}, bidirectional={flag}, batch_first=True)",
        ranks=(3,),
    ),
    Form(_LOOP, "self.{m} = nn.[[GRUCell|RNNCell]]({C}, {k}, bias={flag})", ranks=(3,)),
    Form(_LSTM_LOOP, "self.{m} = nn.LSTMCell({C}, {k}, bias={flag})", ranks=(3,)),
    Form("self.{m}({a})", "self.{m} = nn.[[GRUCell|RNNCell]]({C}, {k}, bias={flag})", ranks=(2,)),
    Form("torch.cat(self.{m}({a}), -1)", "self.{m} = nn.LSTMCell({C}, {k}, bias={flag})", ranks=(2,)),
]
#: Other layers, for any number of dimensions.
ANYWHERE = [
    Form("self.{m}({a})", "self.{m} = nn.Linear({C}, {k}, bias={flag})"),
    Form("self.{m}({a})", "self.{m} = nn.[[ReLU|ReLU6|SELU|Hardswish|SiLU]](inplace={flag})"),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.[[Tanh|Sigmoid|GELU|Mish|Softplus|LogSigmoid|Softsign|Tanhshrink|ELU|CELU|"
        "LeakyReLU|Hardsigmoid|Hardtanh|PReLU|RReLU|Hardshrink|Softshrink|Identity]]()",
    ),
    Form("self.{m}({a})", "self.{m} = nn.[[Softmax|LogSoftmax|Softmin]]({d})"),
    Form("self.{m}({a})", "self.{m} = nn.[[LayerNorm|RMSNorm]]({C}, eps=0.1)"),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.Sequential(nn.Linear({C}, 3), nn.[[Tanh|ReLU|Dropout]](), nn.Linear(3, {k}))",
    ),
    Form(
        "self.{m}({a}, {b})",
        "self.{m} = nn.[[Bilinear({C}, {C}, {k})|CosineSimilarity(-1)|PairwiseDistance()|"
        "CosineSimilarity(1)]]",
    ),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.[[Flatten()|GLU(-1)|Threshold(0.1, 7.0)|AlphaDropout()|Unflatten(1, (1, "
        "-1))|LocalResponseNorm(2)]]",
    ),
    Form(
        "self.{m}(self.{m}({a}))",
        "self.{m} = nn.[[Tanh()|Softmax(-1)|Linear({C}, {C})|LayerNorm({C}, eps=0.1)|ReLU(inplace=True)]]",
    ),
    Form(
        "self.{m}({a}, {b})",
        "self.{m} = nn.[[MSELoss|L1Loss|HuberLoss|SmoothL1Loss|KLDivLoss|"
        "BCEWithLogitsLoss]](reduction='none')",
        exact=None,
    ),
]
#: Other layers, for a batch of sequences.
SEQUENCES = [
    Form("self.{m}({a})", "self.{m} = nn.Conv1d({T}, {k}, [[1|2]], padding=1)", ranks=(3,)),
    Form("self.{m}({a}.mT).mT", "self.{m} = nn.[[Conv1d|ConvTranspose1d]]({C}, {k}, 2)", ranks=(3,)),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.[[MaxPool1d(2, 1)|AvgPool1d(2, 1)|AdaptiveMaxPool1d(2)|AdaptiveAvgPool1d(1)|"
        "AdaptiveAvgPool1d(2)]]",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.[[BatchNorm1d({T})|InstanceNorm1d({T}, eps=0.1)|GroupNorm(1, {T}, eps=0.1)|"
        "ConstantPad1d(1, 0.5)|ReflectionPad1d(1)|Upsample(scale_factor=2)|Fold((1, {C}), (1, 1))]]",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}, {a}, {b}, need_weights={flag})[0]",
        "self.{m} = nn.MultiheadAttention({C}, 1, bias={flag}, batch_first=True)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}.mT, {b}.mT, {a}.mT)[1]",
        "self.{m} = nn.MultiheadAttention({T}, {T}, batch_first=True, add_zero_attn={flag})",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.TransformerEncoderLayer({C}, 1, 4, batch_first=True, norm_first={flag}, "
        "activation='[[relu|gelu]]')",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a})",
        "self.{m} = nn.TransformerEncoder(nn.TransformerEncoderLayer({C}, 1, 3, batch_first=True), "
        "2, enable_nested_tensor=False)",
        ranks=(3,),
    ),
    Form(
        "self.{m}({a}, {b})", "self.{m} = nn.TransformerDecoderLayer({C}, 1, 3, batch_first=True)", ranks=(3,)
    ),
    Form(
        "self.{m}({a}[:, None])",
        "self.{m} = nn.[[Conv2d(1, 2, 2, padding=1)|MaxPool2d(2, 1)|AvgPool2d(2, 1)|ZeroPad2d(1)|"
        "BatchNorm2d(1)|AdaptiveMaxPool2d(1)|Softmax2d()]]",
        ranks=(3,),
    ),
]
