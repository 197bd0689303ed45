//! Tensors, `nn` functions and optimizers in recipes: what they compute and what is learned with
//! them. Numbers are PyTorch's, or follow from the formula beside them.

use crate::support::recipe::Recipe;

/// What a recipe prints, one line for each `print`.
fn prints(text: &str) -> Vec<String> {
    Recipe::new(text).prints()
}

/// Each expression as it is printed.
fn values(cases: &[(&str, &str)]) {
    let recipe: String = cases
        .iter()
        .map(|(expression, _)| format!("print({{ let v = {{ {expression} }}; if type_of(v) == \"Tensor\" {{ v.to_array() }} else {{ v }} }});\n"))
        .collect();
    let found = prints(&recipe);
    for ((expression, expected), found) in cases.iter().zip(&found) {
        assert_eq!(found, expected, "{expression}");
    }
    assert_eq!(found.len(), cases.len());
}

#[test]
fn tensors_are_made_as_in_pytorch() {
    values(&[
        ("tensor([[1, 2], [3, 4]])", "[[1, 2], [3, 4]]"),
        ("tensor([[1, 2], [3, 4]]).dtype", "int64"),
        ("tensor([1, 2.5]).dtype", "float32"),
        ("tensor([true, false]).dtype", "bool"),
        ("tensor(3).shape", "[]"),
        ("tensor([]).dtype", "float32"),
        ("tensor([1, 2], #{ dtype: \"float64\" }).dtype", "float64"),
        ("zeros([2, 2])", "[[0.0, 0.0], [0.0, 0.0]]"),
        ("ones(2, #{ dtype: \"int64\" })", "[1, 1]"),
        ("full([2], 7)", "[7, 7]"),
        ("full([2], 0.5)", "[0.5, 0.5]"),
        ("arange(4)", "[0, 1, 2, 3]"),
        ("arange(1, 2, 0.25)", "[1.0, 1.25, 1.5, 1.75]"),
        ("arange(5, 0, -2)", "[5, 3, 1]"),
        ("linspace(-1, 1, 5)", "[-1.0, -0.5, 0.0, 0.5, 1.0]"),
        ("eye(2)", "[[1.0, 0.0], [0.0, 1.0]]"),
        ("zeros([2], #{ requires_grad: true }).requires_grad", "true"),
        ("zeros_like(tensor([1, 2]))", "[0, 0]"),
        ("randint(3, 4, [2])", "[3, 3]"),
        ("let a = tensor([1.0, 2.0]); a.to(\"int64\").to(\"cpu\")", "[1, 2]"),
    ]);
}

/// The first two draws of `torch.manual_seed(0); torch.rand(2)`.
#[test]
fn chance_is_that_of_pytorch() {
    values(&[
        (
            "manual_seed(0); let t = rand([2]); (t - tensor([0.4962566, 0.7682218])).abs().max().item() < 1e-6",
            "true",
        ),
        ("manual_seed(7); let a = randn([4]); manual_seed(7); a.allclose(randn([4]))", "true"),
    ]);
}

#[test]
fn operators_follow_pytorchs_promotion_and_broadcasting() {
    values(&[
        ("tensor([1, 2]) + 1", "[2, 3]"),
        ("2.5 * tensor([1, 2])", "[2.5, 5.0]"),
        ("(2.5 * tensor([1, 2])).dtype", "float32"),
        ("1 - tensor([1, 2])", "[0, -1]"),
        ("tensor([1, 2]) / 2", "[0.5, 1.0]"),
        ("2 / tensor([1.0, 4.0])", "[2.0, 0.5]"),
        ("tensor([7, -7]) % 3", "[1, 2]"),
        ("tensor([2, 3]) ** 2", "[4, 9]"),
        ("2 ** tensor([2, 3])", "[4, 8]"),
        ("-tensor([1, 2])", "[-1, -2]"),
        ("tensor([1, 5]) < 3", "[true, false]"),
        ("3 < tensor([1, 5])", "[false, true]"),
        ("tensor([1, 5]) == tensor([1, 6])", "[true, false]"),
        ("tensor([1, 5]).ge(5)", "[false, true]"),
        ("tensor([1]) == ()", "false"),
        ("tensor([1]) != ()", "true"),
        ("!(tensor([1, 5]) > 3)", "[true, false]"),
        ("(tensor([1, 5]) > 3) | (tensor([1, 5]) < 2)", "[true, true]"),
        ("tensor([[1], [2]]) * tensor([10, 20])", "[[10, 20], [20, 40]]"),
        ("tensor([[1, 2], [3, 4]]).matmul(tensor([[1], [1]]))", "[[3], [7]]"),
        ("tensor([4.0, 9.0]).sqrt()", "[2.0, 3.0]"),
        ("tensor([-1.0, 2.0]).relu()", "[0.0, 2.0]"),
        ("tensor([0.0]).exp()", "[1.0]"),
        ("tensor([0.0]).sigmoid()", "[0.5]"),
        ("tensor([-3, 0, 3]).clamp(-1, ())", "[-1, 0, 3]"),
        ("let t = tensor([-3, 3]); where(t > 0, t, 0)", "[0, 3]"),
        ("tensor([1, 2, 3]).masked_fill(tensor([1, 2, 3]) == 2, 9)", "[1, 9, 3]"),
        ("tensor([1, 5]).maximum(tensor([3, 3]))", "[3, 5]"),
        ("\"sum \" + tensor([1, 2]).sum()", "sum Tensor 3 (int64 [] on cpu)"),
    ]);
}

#[test]
fn reductions_take_a_dimension_or_options() {
    let t = "let t = tensor([[1.0, 2.0], [3.0, 6.0]]);";
    let case = |rest: &str| format!("{t} {rest}");
    let cases = [
        ("t.sum().item()", "12.0"),
        ("t.sum(0)", "[4.0, 8.0]"),
        ("t.sum(#{ dim: -1, keepdim: true })", "[[3.0], [9.0]]"),
        ("t.sum([0, 1]).item()", "12.0"),
        ("t.mean(1)", "[1.5, 4.5]"),
        ("t.max().item()", "6.0"),
        ("t.max(0).values", "[3.0, 6.0]"),
        ("t.min(1).indices", "[0, 0]"),
        ("t.argmax().item()", "3"),
        ("t.argmax(1)", "[1, 1]"),
        // ((1 - 1.5)^2 + (2 - 1.5)^2) / 1 and ((3 - 4.5)^2 + (6 - 4.5)^2) / 1
        ("t.variance(1)", "[0.5, 4.5]"),
        ("t.variance(#{ dim: 1, correction: 0 })", "[0.25, 2.25]"),
        ("tensor([3.0, 4.0]).norm().item()", "5.0"),
        ("tensor([3.0, -4.0]).norm(#{ p: 1 }).item()", "7.0"),
        ("t.cumsum(0)", "[[1.0, 2.0], [4.0, 8.0]]"),
        ("(t > 1).all().item()", "false"),
        ("(t > 1).any(1)", "[true, true]"),
        ("t.topk(1).values", "[[2.0], [6.0]]"),
        ("t.prod(1)", "[2.0, 18.0]"),
    ];
    let cases: Vec<(String, &str)> = cases.iter().map(|(e, v)| (case(e), *v)).collect();
    values(&cases.iter().map(|(e, v)| (e.as_str(), *v)).collect::<Vec<_>>());
}

#[test]
fn shapes_change_without_changing_numbers() {
    values(&[
        ("arange(6).reshape([2, -1])", "[[0, 1, 2], [3, 4, 5]]"),
        ("arange(6).view([3, 2]).T", "[[0, 2, 4], [1, 3, 5]]"),
        ("zeros([2, 3, 4]).transpose(0, -1).shape", "[4, 3, 2]"),
        ("zeros([2, 3, 4]).permute([2, 0, 1]).shape", "[4, 2, 3]"),
        ("zeros([1, 3, 1]).squeeze().shape", "[3]"),
        ("zeros([3]).unsqueeze(-1).shape", "[3, 1]"),
        ("zeros([2, 3, 4]).flatten(1, 2).shape", "[2, 12]"),
        ("zeros([1, 3]).expand([4, -1]).shape", "[4, 3]"),
        ("tensor([1, 2]).repeat([2])", "[1, 2, 1, 2]"),
        ("cat([tensor([1]), tensor([2, 3])])", "[1, 2, 3]"),
        ("stack([tensor([1, 2]), tensor([3, 4])], 1)", "[[1, 3], [2, 4]]"),
        ("arange(6).split(4, 0).map(|p| p.len())", "[4, 2]"),
        ("arange(6).split([1, 5], 0)[0]", "[0]"),
        ("arange(6).chunk(3, 0).len()", "3"),
        ("ones([2, 2]).tril()", "[[1.0, 0.0], [1.0, 1.0]]"),
        ("ones([2, 2]).triu(1)", "[[0.0, 1.0], [0.0, 0.0]]"),
        ("[zeros([2, 3]).numel(), zeros([2, 3]).ndim, zeros([2, 3]).size(-1)]", "[6, 2, 3]"),
    ]);
}

#[test]
fn parts_are_views_that_can_be_written() {
    values(&[
        ("arange(4)[-1].item()", "3"),
        ("arange(4)[1..3]", "[1, 2]"),
        ("arange(4)[1..=3]", "[1, 2, 3]"),
        ("arange(6).view([2, 3])[1][0].item()", "3"),
        ("arange(6).view([2, 3])[0, 1..3]", "[1, 2]"),
        ("arange(6).view([2, 3])[.., 0]", "[0, 3]"),
        ("arange(6).view([2, 3])[.., [2, 0]]", "[[2, 0], [5, 3]]"),
        ("arange(6).view([3, 2])[[2, 0]]", "[[4, 5], [0, 1]]"),
        ("arange(3)[[true, false, true]]", "[0, 2]"),
        ("let t = zeros([2, 2]); t[.., 1] = 3; t[1, 0] += 1; t", "[[0.0, 3.0], [1.0, 3.0]]"),
        ("let t = arange(4).view([2, 2]); `${t[1, 0].item()}`", "2"),
        ("arange(6).view([2, 3])[\":, -1\"]", "[2, 5]"),
        ("arange(6)[\"::2\"]", "[0, 2, 4]"),
        ("arange(24).view([2, 3, 4])[\"...\", 0].shape", "[2, 3]"),
        ("arange(3)[(), ..].shape", "[1, 3]"),
        ("arange(4)[tensor([3, 0, -1])]", "[3, 0, 3]"),
        ("let t = arange(4); t[t > 1]", "[2, 3]"),
        (
            "let t = zeros([2, 2]); t[0] = 1; t[\":, 1\"] = tensor([5, 6]); t",
            "[[1.0, 5.0], [0.0, 6.0]]",
        ),
        ("let t = zeros([2, 2]); t[1][0] = 7; t", "[[0.0, 0.0], [7.0, 0.0]]"),
        ("let t = arange(4); t[t > 1] = 0; t", "[0, 1, 0, 0]"),
        ("let t = zeros([3]); let part = t[0..2]; part += 1; t", "[1.0, 1.0, 0.0]"),
        ("arange(6).view([2, 3]).select(1, 0)", "[0, 3]"),
        ("arange(6).narrow(0, 2, 3)", "[2, 3, 4]"),
        ("arange(6).view([2, 3]).gather(1, tensor([[2], [0]]))", "[[2], [3]]"),
        ("arange(6).index_select(0, [5, 0])", "[5, 0]"),
        (
            "let sums = []; for row in arange(6).view([2, 3]) { sums += row.sum().item(); } sums",
            "[3, 12]",
        ),
        ("let w = ones([2, 2], #{ requires_grad: true }); w[0].sum().item()", "2.0"),
        ("let w = ones([2, 2], #{ requires_grad: true }); w[w > 0].to_array().len()", "4"),
    ]);
}

#[test]
fn gradients_are_those_of_calculus() {
    values(&[
        // d(x^2)/dx = 2x
        (
            "let x = tensor([1.0, 3.0], #{ requires_grad: true }); (x * x).sum().backward(); x.grad",
            "[2.0, 6.0]",
        ),
        // Two passes add up.
        (
            "let x = tensor([2.0], #{ requires_grad: true }); for i in 0..2 { (3 * x).sum().backward(); } x.grad",
            "[6.0]",
        ),
        (
            "let x = tensor([2.0], #{ requires_grad: true }); (3 * x).sum().backward(); x.zero_grad(); x.grad",
            "[0.0]",
        ),
        ("let x = tensor([2.0], #{ requires_grad: true }); x.grad == ()", "true"),
        (
            "let x = tensor([2.0], #{ requires_grad: true }); (3 * x).sum().backward(); x.grad.sum().item()",
            "3.0",
        ),
        ("let x = tensor([2.0], #{ requires_grad: true }); (x * 2).requires_grad", "true"),
        (
            "let x = tensor([2.0], #{ requires_grad: true }); no_grad(|| x * 2).requires_grad",
            "false",
        ),
        (
            "let x = tensor([2.0], #{ requires_grad: true }); (x * 2).detach().requires_grad",
            "false",
        ),
        ("let x = tensor([2.0]); x.requires_grad = true; x.is_leaf && x.requires_grad", "true"),
        (
            "let x = tensor([2.0, 3.0], #{ requires_grad: true }); (x * x).backward(tensor([1.0, 10.0])); x.grad",
            "[4.0, 60.0]",
        ),
        // What a function under no_grad assigns lasts.
        (
            "let x = tensor([2.0], #{ requires_grad: true }); (x * x).sum().backward(); no_grad(|| x -= 0.25 * x.grad); x",
            "[1.0]",
        ),
        ("let x = tensor([2.0]); no_grad(|| { x = x + 1; }); x = x * 2; x", "[6.0]"),
    ]);
}

#[test]
fn nn_functions_are_those_of_pytorch() {
    values(&[
        (
            "nn::linear(tensor([[1.0, 2.0]]), tensor([[3.0, 4.0], [5.0, 6.0]]), tensor([0.5, 0.0]))",
            "[[11.5, 17.0]]",
        ),
        // (x - 2) / sqrt(1 + eps)
        ("nn::layer_norm(tensor([1.0, 3.0]), [2], #{ eps: 0 })", "[-1.0, 1.0]"),
        (
            "nn::layer_norm(tensor([1.0, 3.0]), 2, #{ weight: tensor([2.0, 2.0]), bias: ones([2]), eps: 0 })",
            "[-1.0, 3.0]",
        ),
        ("nn::rms_norm(tensor([3.0, 3.0]), [2], #{ eps: 0 })", "[1.0, 1.0]"),
        ("nn::softmax(tensor([0.0, 0.0]), -1)", "[0.5, 0.5]"),
        // PyTorch: gelu(1) is 0.8413447, with tanh 0.8411920.
        ("(nn::gelu(tensor([1.0])) - 0.8413447).abs().item() < 1e-6", "true"),
        (
            "(nn::gelu(tensor([1.0]), #{ approximate: \"tanh\" }) - 0.8411920).abs().item() < 1e-6",
            "true",
        ),
        ("nn::embedding(tensor([1, 0]), tensor([[1.0], [2.0]]))", "[[2.0], [1.0]]"),
        ("nn::one_hot(tensor([1]), 3)", "[[0, 1, 0]]"),
        // ln 2 for each of two equal logits
        (
            "(nn::cross_entropy(zeros([3, 2]), tensor([0, 1, -100])) - 0.6931472).abs().item() < 1e-6",
            "true",
        ),
        (
            "nn::cross_entropy(zeros([2, 2]), tensor([0, 7]), #{ ignore_index: 7, reduction: \"none\" })[1].item()",
            "0.0",
        ),
        ("nn::mse_loss(tensor([1.0, 2.0]), tensor([1.0, 4.0])).item()", "2.0"),
        (
            "nn::mse_loss(tensor([1.0, 2.0]), tensor([1.0, 4.0]), #{ reduction: \"sum\" }).item()",
            "4.0",
        ),
        ("nn::dropout(ones([4]), 0)", "[1.0, 1.0, 1.0, 1.0]"),
        ("nn::dropout(ones([2]), #{ p: 0.5, training: false })", "[1.0, 1.0]"),
        ("nn::dropout(ones([2]), 1)", "[0.0, 0.0]"),
        // The first token sees itself alone.
        (
            "let q = zeros([1, 2, 1]); nn::scaled_dot_product_attention(q, q, tensor([[[1.0], [3.0]]]), #{ is_causal: true })",
            "[[[1.0], [2.0]]]",
        ),
        (
            "let q = zeros([1, 2, 1]); let m = tensor([[true, false], [false, true]]); nn::scaled_dot_product_attention(q, q, tensor([[[1.0], [3.0]]]), #{ attn_mask: m })",
            "[[[1.0], [3.0]]]",
        ),
    ]);
}

/// SGD by hand fits y = 3x - 1.
#[test]
fn a_line_is_fitted_by_hand() {
    let printed = prints(
        r#"let x = linspace(-1, 1, 16).unsqueeze(1);
let y = 3 * x - 1;
let w = zeros([1, 1], #{ requires_grad: true });
let b = zeros([1], #{ requires_grad: true });
for step in 0..200 {
    let loss = ((nn::linear(x, w, b) - y) ** 2).mean();
    w.zero_grad();
    b.zero_grad();
    loss.backward();
    no_grad(|| { w -= 0.2 * w.grad; b -= 0.2 * b.grad; });
}
print((w.item() - 3.0).abs() < 1e-3 && (b.item() + 1.0).abs() < 1e-3);"#,
    );
    assert_eq!(printed, ["true"]);
}

/// A first step of AdamW moves each weight by lr, after the decay of lr * 0.01 of it.
#[test]
fn an_optimizer_steps_as_pytorchs() {
    values(&[
        (
            "let w = tensor([1.0, -2.0], #{ requires_grad: true }); let opt = optimizer([w], #{ lr: 0.1 }); (w * w).sum().backward(); opt.step(); (w - tensor([0.899, -1.898])).abs().max().item() < 1e-5",
            "true",
        ),
        (
            "let w = tensor([1.0], #{ requires_grad: true }); let opt = optimizer(#{ w: w }, #{ type: \"SGD\", lr: 0.5 }); (3 * w).sum().backward(); opt.step(); opt.zero_grad(); opt.lr = 0.25; (2 * w).sum().backward(); opt.step(); w",
            "[-1.0]",
        ),
        // A tensor without a gradient stays, and a transposed one is updated in place.
        (
            "let a = tensor([1.0], #{ requires_grad: true }); let b = tensor([[1.0, 2.0], [3.0, 4.0]]).t().requires_grad_(); let opt = optimizer([a, b], #{ type: \"SGD\", lr: 1 }); b.sum().backward(); opt.step(); [a.item(), b[0, 1].item()]",
            "[1.0, 2.0]",
        ),
        (
            "let w = zeros([2, 3], #{ requires_grad: true }); `${optimizer([w], #{ type: \"Lion\", lr: 0.001 })}`",
            "Optimizer Lion over 1 tensors of 6 elements, lr 1e-3",
        ),
    ]);
    for kind in ["AdamW", "Adam", "Lamb", "Lion", "SGD", "Adagrad", "Muon"] {
        let recipe = format!(
            "let w = ones([4, 3], #{{ requires_grad: true }});
let opt = optimizer(#{{ w: w }}, #{{ type: \"{kind}\" }});
for i in 0..3 {{ opt.zero_grad(); (w * w).sum().backward(); opt.step(); }}
print(w.sum().item() < 12.0 && w.isfinite().all().item());"
        );
        assert_eq!(prints(&recipe), ["true"], "{kind}");
    }
}

#[test]
fn a_small_network_learns_xor() {
    let printed = prints(
        r#"manual_seed(1);
let x = tensor([[0, 0], [0, 1], [1, 0], [1, 1]], #{ dtype: "float32" });
let y = tensor([[0.0], [1.0], [1.0], [0.0]]);
let p = #{
    w1: randn([8, 2]).requires_grad_(), b1: zeros([8], #{ requires_grad: true }),
    w2: (randn([1, 8]) * 0.3).requires_grad_(), b2: zeros([1], #{ requires_grad: true }),
};
let opt = optimizer(p, #{ lr: 0.05, weight_decay: 0, no_decay: ["b*"] });
for step in 0..300 {
    let hidden = nn::linear(x, p.w1, p.b1).tanh();
    let loss = nn::binary_cross_entropy_with_logits(nn::linear(hidden, p.w2, p.b2), y);
    opt.zero_grad();
    loss.backward();
    opt.step();
}
let answers = no_grad(|| nn::linear(nn::linear(x, p.w1, p.b1).tanh(), p.w2, p.b2) > 0);
print(answers.flatten().to_array());"#,
    );
    assert_eq!(printed, ["[false, true, true, false]"]);
}

/// One block of a transformer, written in the recipe, learns to repeat a sequence.
#[test]
fn a_transformer_block_is_a_recipe() {
    let printed = prints(
        r#"manual_seed(0);
fn weight(shape) { (randn(shape) * 0.1).requires_grad_() }
fn forward(p, ids) {
    let x = nn::embedding(ids, p.wte) + p.wpe;
    let h = nn::layer_norm(x, [16], #{ weight: p.ln1, bias: p.ln1_b });
    let qkv = nn::linear(h, p.qkv).view([1, 8, 3, 2, 8]).permute([2, 0, 3, 1, 4]);
    let a = nn::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], #{ is_causal: true });
    x = x + nn::linear(a.transpose(1, 2).reshape([1, 8, 16]), p.proj);
    h = nn::gelu(nn::linear(nn::layer_norm(x, [16]), p.up), #{ approximate: "tanh" });
    x = x + nn::dropout(nn::linear(h, p.down), 0.0);
    nn::linear(x, p.wte)
}
let p = #{
    wte: weight([11, 16]), wpe: weight([8, 16]), qkv: weight([48, 16]), proj: weight([16, 16]),
    up: weight([64, 16]), down: weight([16, 64]),
    ln1: ones([16], #{ requires_grad: true }), ln1_b: zeros([16], #{ requires_grad: true }),
};
let opt = optimizer(p, #{ lr: 1e-2 });
let ids = tensor([[1, 5, 2, 9, 3, 7, 4, 8, 6]]);
let losses = [];
for step in 0..60 {
    let logits = forward(p, ids[":, :-1"]);
    let loss = nn::cross_entropy(logits.view([-1, 11]), ids[":, 1:"].flatten());
    opt.zero_grad();
    loss.backward();
    opt.step();
    losses += loss.item();
}
print(losses[0] > 2.0 && losses[59] < 0.1);"#,
    );
    assert_eq!(printed, ["true"]);
}

#[test]
fn a_model_gives_its_logits_and_a_loss_of_ones_own() {
    let printed = prints(
        r#"let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let ids = tensor([[1, 2, 3]]);
let logits = model.logits(ids);
print(logits.shape);
print(nn::cross_entropy(logits[":, :-1"].reshape([-1, 8]), ids[":, 1:"].flatten()).item() > 0);
try { model.logits(tensor([[9]])) } catch (e) { print(e.kind) }"#,
    );
    assert_eq!(printed, ["[1, 3, 8]", "true", "token_id"]);
}

/// Handles in closures, functions, constants and arrays are the same tensor.
#[test]
fn tensors_go_through_all_of_rhai() {
    let printed = prints(
        r#"const C = tensor([1.0]);
fn twice(t) { t * 2 }
let w = tensor([1.0]);
let f = |x| x + w;
print(f.call(tensor([2.0])).item());
w = w * 10;
w += 1;
print(f.call(twice(w)).item());
print((C + w.add(w)).sum().item());
let list = [w, w];
list[0] += 1;
print(w.item());
print(w);"#,
    );
    assert_eq!(printed, ["3.0", "33.0", "23.0", "12.0", "Tensor 12.0 (float32 [1] on cpu)"]);
}
