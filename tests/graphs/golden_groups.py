"""The groups of every network of the test list, written by hand.

`SIZES`: group name -> number of units. `MEMBERS`: group name -> tensor axes that a unit takes
with it, for networks where that is the point.
"""

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def expand(text: str) -> set[tuple[str, int]]:
    """{(tensor, axis)} of "conv:0 conv:1" (weight and bias), "conv.weight:1", "bn*" and "ln+"."""
    members: set[tuple[str, int]] = set()
    for word in text.split():
        if word.endswith("*"):
            members |= {(f"{word[:-1]}.{name}", 0) for name in BATCH_NORM}
        elif word.endswith("+"):
            members |= {(f"{word[:-1]}.{name}", 0) for name in ("weight", "bias")}
        else:
            tensor, axis = word.split(":")
            members.add((tensor, int(axis)))
    return members


def per_block(text: str, blocks: tuple[str, ...] = ("blocks.0", "blocks.1")) -> str:
    return " ".join(text.replace("~", block) for block in blocks)


def both(groups: dict, blocks: tuple[str, ...] = ("blocks.0", "blocks.1")) -> dict:
    return {
        name.replace("~", block): value.replace("~", block) if isinstance(value, str) else value
        for block in blocks
        for name, value in groups.items()
    }


BETWEEN = {"tail.0": 6, "last.0": 4}
PASSED = {"stem.0": 8, **BETWEEN}
VIT = {"embed": 12, **both({"~.attention.qkv": 3, "~.mlp.0": 20})}
GQA = {"embed": 16, **both({"~.attention.q": 2, "~.mlp.0": 20})}
LAYERS = ("encoder.layers.0", "encoder.layers.1")
ENCODER = {"embed": 16, **both({"~.self_attn": 4, "~.linear1": 20}, LAYERS)}

SIZES = {
    "unet": {"enter.0": 6, "down.0": 8, "up": 4, "leave.0": 5},
    "volume_unet": {"enter": 4, "down": 6, "up": 5},
    "point_net": {"each": 6, "all": 10},
    "upsampling": {"a.0": 6, "b.0": 4, "grouped": 2, "c.0": 5},
    "efficientnet": {
        "stem.0": 6,
        "blocks.0.expand.0": 12,
        "blocks.0.squeeze": 3,
        "blocks.1.expand.0": 10,
        "blocks.1.squeeze": 3,
    },
    "c2f": {
        "stem.0": 6,
        "enter.0": 4,
        "enter.0@2": 4,
        "chain.0.0": 4,
        "chain.1.0": 4,
        "leave.0": 6,
    },
    "llama": {"attention.q_proj": 2, "attention.o_proj": 16, "gate": 12},
    "bert": {"query": 3, "dense": 12, "pooler": 8},
    "diffusion": {"time.0": 10, "time.2": 4, "attention.qkv": 2, "body": 6},
    "vit_fused": VIT,
    "vit_manual": VIT,
    "vit_einsum": VIT,
    "vit_separate": {"embed": 12, **both({"~.attention.q": 3, "~.mlp.0": 20})},
    "gqa_repeat": GQA,
    "gqa_fused": GQA,
    "mha_self": {"embed": 12, "attention": 3},
    "mha_self_tokens_first": {"embed": 12, "attention": 3},
    # both streams meet in the columns of in_proj_weight
    "mha_cross": {"embed": 12, "attention": 3},
    "mha_cross_tokens_first": {"embed": 12, "attention": 3},
    "mha_cross_own_widths": {"embed": 12, "context": 10, "attention": 3},
    "encoder_norm_last": ENCODER,
    "encoder_norm_first": ENCODER,
    "swin": {
        "embed": 12,
        **both({"~.attention.qkv": 3, "~.mlp.0": 20}, ("plain", "shifted")),
        "reduction": 14,
    },
    "convnext": {"stem": 12, **both({"~.mlp.0": 20})},
    "mixer": {"embed": 12, **both({"~.token.0": 10, "~.channel.0": 20})},
    # an embedding is a table, not an operator: the stream is named after the first projection
    "gpt": {"blocks.0.attention.proj": 12, **both({"~.attention.qkv": 3, "~.mlp.0": 20})},
    "preactivation": {"stem": 8, "block1.conv1": 8, "block2.shortcut": 12, "block2.conv1": 12},
    "bottleneck": {
        "conv1": 4, "layers.0.conv1": 4, "layers.0.conv2": 4, "layers.0.conv3": 16,
        "layers.1.conv1": 4, "layers.1.conv2": 4,
        "layers.2.conv1": 8, "layers.2.conv2": 8, "layers.2.conv3": 32,
    },
    # widths 8 and 16 in four blocks: a unit is one channel of each block
    "resnext": {
        "conv1": 8, "layers.0.conv1": 2, "layers.0.conv2": 2, "layers.0.conv3": 32,
        "layers.1.conv1": 4, "layers.1.conv2": 4, "layers.1.conv3": 64,
    },
    "mobilenetv3": {"stem.0": 6, "expand.0": 12, "gate.fc1": 4},
    # the view ties channel i of the passing half to channel i of the branch
    "shufflenetv2": {"stem.0": 4, "stem.0@2": 4, "units.0.branch.0": 4, "last.0": 6},
    # interleaved: the second unit passes s0 b0 s1 b1 and ties them to its branch, s2 b2 s3 b3 not
    "shufflenetv2_twice": {
        "stem.0": 2, "stem.0@2": 2, "stem.0@3": 4,
        "units.0.branch.0": 4, "units.1.branch.0": 4, "last.0": 6,
    },
    "shufflenetv1": {"stem.0": 4, "reduce": 3},
    "densenet": {
        "stem": 6, "layer1.conv1": 6, "layer1.conv2": 4, "layer2.conv1": 6, "layer2.conv2": 4,
        "conv": 7,
    },
    "inception": {
        "stem.0": 6, "one.0": 4, "three.0": 3, "three.1.0": 5, "five.0": 3, "five.1.0": 4,
        "five.2.0": 3, "pool.1": 2, "last.0": 6,
    },
    "conv1d": {"a": 8, "b": 6},
    "conv3d": {"a": 6, "b": 4},
    "option_a_lambda": {"stem.0": 6, "a.0": 12, "b.0": 6, "last.0": 5},
    "tied_autoencoder": {"linear": 10, "linear#2": 6},
    "functional_conv": {"conv": 8, "last.0": 4},
    "repeat": PASSED,
    "repeat_interleave": PASSED,
    "expanded_map": PASSED,
    "channel_gate": PASSED,
    "roll_one": PASSED,
    "index_list": PASSED,
    "index_buffer": PASSED,
    "slice_numbers": {"stem.0": 5, "stem.0@2": 3, **BETWEEN},
    "pad_numbers": PASSED,
    "pixel_shuffle": {"stem.0": 2, **BETWEEN},
    "pixel_unshuffle": PASSED,
    "split_numbers": {"stem.0": 3, "stem.0@2": 5, "operation.three": 6, **BETWEEN},
    "view_numbers": PASSED,
    "flatten_number": {"a.0": 8, "fc1": 6},
    "glu": {"stem.0": 4, **BETWEEN},
    "instance_norm": PASSED,
    "layer_norm_chw": PASSED,
    "prelu": PASSED,
    "layer_scale": PASSED,
    "frozen_batch_norm": PASSED,
    # blocks a0-a3 b0 b1 and b2-b7: a_i with b_(i+2), b0 with b6, b1 with b7
    "uneven_norm_groups": {"a": 4, "b": 2, "last.0": 5},
    "wide_layer_norm": {"1": 100},
    "data_dependent": {"a.0": 6, "b.0": 4},
    "nested_outputs": {"a.0": 6},  # the mean over the channels of b is an output
    "one_channel": {"a.0": 6, "b.0": 4},
    **dict.fromkeys(
        ("softmax", "channel_mean", "channel_max", "normalize", "channel_conv", "gram", "cumsum"),
        BETWEEN,
    ),
}  # fmt: skip

STREAM = "~.norm1+ ~.attention.proj.weight:0 ~.attention.proj.bias:0 ~.norm2+ ~.mlp.0.weight:1 "
STREAM += "~.mlp.2.weight:0 ~.mlp.2.bias:0 "
HIDDEN = {"~.mlp.0": "~.mlp.0+ ~.mlp.2.weight:1"}
FUSED_HEADS = {"~.attention.qkv": "~.attention.qkv+ ~.attention.proj.weight:1"}
ENTRY = "embed+ cls_token:2 pos_embed:2 norm+ fc.weight:1 "

MEMBERS = {
    "preactivation": {
        "stem": "stem.weight:0 block1.norm1* block1.conv1.weight:1 block1.conv2.weight:0 "
        "block2.norm1* block2.shortcut.weight:1 block2.conv1.weight:1",
        "block1.conv1": "block1.conv1.weight:0 block1.norm2* block1.conv2.weight:1",
        "block2.shortcut": "block2.shortcut.weight:0 block2.conv2.weight:0 norm* head.fc.weight:1",
        "block2.conv1": "block2.conv1.weight:0 block2.norm2* block2.conv2.weight:1",
    },
    "shufflenetv2": {
        "stem.0": "stem.0.weight:0 stem.1* units.0.branch.5.weight:0 units.0.branch.6* "
        "last.0.weight:1",
        "stem.0@2": "stem.0.weight:0 stem.1* units.0.branch.0.weight:1",
        "units.0.branch.0": "units.0.branch.0.weight:0 units.0.branch.1* "
        "units.0.branch.3.weight:0 units.0.branch.4* units.0.branch.5.weight:1",
        "last.0": "last.0.weight:0 last.1* head.fc.weight:1",
    },
    "vit_fused": {
        "embed": ENTRY + per_block(STREAM + "~.attention.qkv.weight:1"),
        **both({**FUSED_HEADS, **HIDDEN}),
    },
    "gqa_repeat": {
        "embed": ENTRY
        + per_block(
            STREAM + "~.attention.q.weight:1 ~.attention.k.weight:1 ~.attention.v.weight:1"
        ),
        **both(
            {
                "~.attention.q": "~.attention.q+ ~.attention.k+ ~.attention.v+ "
                "~.attention.proj.weight:1",
                **HIDDEN,
            }
        ),
    },
    "swin": {
        "embed": "embed+ norm+ reduction.weight:1 "
        + per_block(STREAM + "~.attention.qkv.weight:1", ("plain", "shifted")),
        **both(
            {
                "~.attention.qkv": "~.attention.qkv+ ~.attention.proj.weight:1 ~.attention.table:1",
                **HIDDEN,
            },
            ("plain", "shifted"),
        ),
        "reduction": "reduction.weight:0 fc.weight:1",
    },
    "convnext": {
        "stem": "stem+ norm+ fc.weight:1 "
        + per_block("~.depthwise+ ~.norm+ ~.gamma:0 ~.mlp.0.weight:1 ~.mlp.2+"),
        **both(HIDDEN),
    },
    "mixer": {
        "embed": "embed+ norm+ fc.weight:1 "
        + per_block("~.norm1+ ~.norm2+ ~.channel.0.weight:1 ~.channel.2+"),
        **both(
            {
                "~.token.0": "~.token.0+ ~.token.2.weight:1",
                "~.channel.0": "~.channel.0+ ~.channel.2.weight:1",
            }
        ),
    },
    "encoder_norm_last": {
        "embed": "embed+ fc.weight:1 "
        + per_block(
            "~.self_attn.in_proj_weight:1 ~.self_attn.out_proj+ ~.linear1.weight:1 ~.linear2+ "
            "~.norm1+ ~.norm2+",
            LAYERS,
        ),
        **both(
            {
                "~.self_attn": "~.self_attn.in_proj_weight:0 ~.self_attn.in_proj_bias:0 "
                "~.self_attn.out_proj.weight:1",
                "~.linear1": "~.linear1+ ~.linear2.weight:1",
            },
            LAYERS,
        ),
    },
    "inception": {
        "stem.0": "stem.0.weight:0 stem.1* one.0.weight:1 three.0.weight:1 five.0.weight:1 "
        "pool.1.weight:1",
        "one.0": "one.0.weight:0 one.1* last.0.weight:1",
        "three.0": "three.0+ three.1.0.weight:1",
        "three.1.0": "three.1.0.weight:0 three.1.1* last.0.weight:1",
        "five.0": "five.0+ five.1.0.weight:1",
        "five.1.0": "five.1.0.weight:0 five.1.1* five.2.0.weight:1",
        "five.2.0": "five.2.0.weight:0 five.2.1* last.0.weight:1",
        "pool.1": "pool.1+ last.0.weight:1",
        "last.0": "last.0.weight:0 last.1* head.fc.weight:1",
    },
    "densenet": {
        "stem": "stem.weight:0 layer1.norm1* layer1.conv1.weight:1 layer2.norm1* "
        "layer2.conv1.weight:1 norm* conv.weight:1",
        "layer1.conv1": "layer1.conv1.weight:0 layer1.norm2* layer1.conv2.weight:1",
        "layer1.conv2": "layer1.conv2.weight:0 layer2.norm1* layer2.conv1.weight:1 norm* "
        "conv.weight:1",
        "layer2.conv1": "layer2.conv1.weight:0 layer2.norm2* layer2.conv2.weight:1",
        "layer2.conv2": "layer2.conv2.weight:0 norm* conv.weight:1",
        "conv": "conv.weight:0 last* head.fc.weight:1",
    },
    "tied_autoencoder": {"linear": "w1:0 b1:0 w2:1 d2:0", "linear#2": "w2:0 b2:0"},
    "gpt": {
        "blocks.0.attention.proj": "wte.weight:1 wpe.weight:1 norm+ "
        + per_block(STREAM + "~.attention.qkv.weight:1"),
        **both({**FUSED_HEADS, **HIDDEN}),
    },
}
