//! Tensors, `nn` functions and optimizers in recipes: what is refused, and in which words.

use dsr::error::Code;

use crate::support::recipe::{Recipe, places};

/// Each mistake is an error that the recipe can catch: its number and message.
#[test]
fn mistakes_are_told_in_the_words_of_the_recipe() {
    let leaf = "let w = ones([2], #{ requires_grad: true });";
    let cases: &[(&str, Code, &str)] = &[
        ("tensor([[1, 2], [3]])", Code::Shape, "`data[1]` must have 2 values, found 1"),
        ("tensor([1, \"a\"])", Code::WrongType, "`data` must hold numbers, found string \"a\""),
        ("tensor([1], #{ dtype: \"float8\" })", Code::BadValue, "`dtype` must be one of"),
        ("tensor([1], #{ dtyp: \"int64\" })", Code::UnknownOption, "`tensor` has no option `dtyp`"),
        (
            "tensor([1], #{ requires_grad: true })",
            Code::WrongType,
            "`requires_grad of tensor` needs floating-point values, found int64",
        ),
        (
            "zeros([2], #{ device: \"gpu\" })",
            Code::BadValue,
            "`device` must be \"cpu\", \"cuda\" or \"cuda:0\", found \"gpu\"",
        ),
        ("zeros([2], #{ device: \"cuda:99\" })", Code::BadValue, "there is no device \"cuda:99\""),
        ("zeros([-1])", Code::Shape, "`zeros` cannot have a dimension of -1, in shape [-1]"),
        (
            "zeros([1000000, 1000000])",
            Code::Memory,
            "`zeros` of shape [1000000, 1000000] needs 3725.3 GiB of memory",
        ),
        (
            "zeros([9000000000, 9000000000])",
            Code::Memory,
            "`zeros` of shape [9000000000, 9000000000] is larger than any memory",
        ),
        (
            "zeros(\"2\")",
            Code::WrongType,
            "`shape` must be an int or an array of ints, found string \"2\"",
        ),
        (
            "randn([2], #{ dtype: \"int64\" })",
            Code::BadValue,
            "`dtype` of randn must be a floating-point one, found int64",
        ),
        ("randint(5, 5, [1])", Code::BadValue, "`high` must be above `low`, found 5 and 5"),
        ("arange(0, 5, 0)", Code::BadValue, "`arange` cannot go from 0 to 5 in steps of 0"),
        ("arange(1e18)", Code::Memory, "`arange` of shape"),
        (
            "ones([2, 3]) + ones([2])",
            Code::Shape,
            "`+` cannot combine shapes [2, 3] and [2]: 3 and 2 in dimension -1",
        ),
        ("ones([2]) + \"a\"", Code::WrongType, "`+` cannot combine Tensor and string \"a\""),
        (
            "ones([1000000, 1]) * ones([1, 1000000])",
            Code::Memory,
            "`*` of shape [1000000, 1000000] needs 3725.3 GiB of memory",
        ),
        (
            "ones([2, 3]).matmul(ones([2, 3]))",
            Code::Shape,
            "`matmul` cannot multiply shapes [2, 3] and [2, 3]: 3 columns and 2 rows",
        ),
        (
            "ones([2]).matmul(tensor([1, 2]))",
            Code::WrongType,
            "`matmul` needs tensors of one dtype, found float32 and int64",
        ),
        (
            "ones([2, 3]).sum(2)",
            Code::Shape,
            "`sum` has no dimension 2: shape [2, 3] has dimensions -2 to 1",
        ),
        ("ones([2, 3]).sum([0, 0])", Code::Shape, "`sum` names a dimension twice: [0, 0]"),
        ("arange(3).mean()", Code::WrongType, "`mean` needs floating-point values, found int64"),
        ("zeros([0]).max()", Code::Shape, "`max` of a tensor without elements, shape [0]"),
        (
            "ones([2, 3]).reshape([4, -1])",
            Code::Shape,
            "`reshape` cannot give shape [2, 3] (6 elements) the shape [4, -1]",
        ),
        (
            "ones([2, 3]).permute([0, 0])",
            Code::Shape,
            "`permute` needs each dimension of shape [2, 3] once, found [0, 0]",
        ),
        (
            "cat([ones([2, 3]), ones([2, 4])], 0)",
            Code::Shape,
            "`cat` along dimension 0 cannot join shapes [2, 3] and [2, 4]",
        ),
        ("cat([])", Code::Shape, "`cat` needs at least one tensor"),
        ("stack([ones(2), 3])", Code::WrongType, "`parts[1]` must be a tensor, found 3"),
        (
            "arange(5).split([1, 1], 0)",
            Code::Shape,
            "`split` cannot cut 5 in dimension 0 into [1, 1]",
        ),
        ("ones([2]).expand([3])", Code::Shape, "`expand` cannot give shape [2] the shape [3]"),
        (
            "ones([2, 3]).item()",
            Code::Shape,
            "`item` needs a tensor with one value, found shape [2, 3]",
        ),
        (
            "ones([2]).to(\"float23\")",
            Code::BadValue,
            "`device` must be \"cpu\", \"cuda\" or \"cuda:0\", found \"float23\"",
        ),
        ("arange(3)[3]", Code::BadValue, "`[]`: index 3 is outside of dimension 0 of size 3"),
        ("arange(3)[0, 0]", Code::Shape, "2 indices are too many for shape [3]"),
        (
            "arange(3)[[0, 1..3]]",
            Code::WrongType,
            "an array that indexes a tensor has ints, or true and false",
        ),
        (
            "arange(6).view([2, 3])[[0, 2]]",
            Code::BadValue,
            "`[]`: indices must be from -2 to 1, found 2",
        ),
        ("arange(3)[1.5]", Code::WrongType, "a tensor cannot be indexed with 1.5"),
        ("arange(3)[\"1:x\"]", Code::BadValue, "`1:x` is no index of a tensor"),
        (
            "let t = arange(3); t[0..2] = ones([3])",
            Code::Shape,
            "`[] =` cannot write shape [3] into shape [2]",
        ),
        (
            "arange(3)[ones([3]) ]",
            Code::WrongType,
            "a tensor is indexed with int64 or bool, found float32",
        ),
        (
            "arange(3).gather(0, tensor([5]))",
            Code::BadValue,
            "`gather`: indices must be from 0 to 2, found 5",
        ),
        ("let t = arange(3); t += 0.5", Code::WrongType, "`+=` would give int64 a fraction"),
        (
            "let t = ones([2]); t += ones([3])",
            Code::Shape,
            "`+=` cannot write shape [3] into shape [2]",
        ),
        ("W w += 1", Code::CallOrder, "`+=` would change a tensor whose gradient is asked for"),
        ("W w[0] = 5", Code::CallOrder, "`[] =` would change a tensor whose gradient is asked for"),
        (
            "W (w * 2).backward()",
            Code::Shape,
            "`backward` needs a tensor with one value, found shape [2]",
        ),
        (
            "ones([1]).backward()",
            Code::CallOrder,
            "`backward` of a tensor that was computed without gradients",
        ),
        (
            "W let l = (w * w).sum(); l.backward(); l.backward()",
            Code::CallOrder,
            "`backward` was called before on this graph, which is freed",
        ),
        (
            "W (w * 2).requires_grad_(false)",
            Code::CallOrder,
            "the gradient goes through this tensor: it was computed from others",
        ),
        (
            "nn::linear(ones([4, 3]), ones([3, 2]))",
            Code::Shape,
            "`linear` cannot apply a weight of shape [3, 2] to shape [4, 3]",
        ),
        (
            "nn::linear(ones([4, 3]), ones([2, 3]), ones([3]))",
            Code::Shape,
            "`linear` needs a bias of shape [2], found [3]",
        ),
        (
            "nn::layer_norm(ones([4, 3]), [4])",
            Code::Shape,
            "`layer_norm` over [4]: shape [4, 3] does not end in it",
        ),
        (
            "nn::layer_norm(ones([3]), [3], #{ weight: ones([4]) })",
            Code::Shape,
            "`weight` of layer_norm must have the shape [3], found [4]",
        ),
        (
            "nn::gelu(ones([3]), #{ approximate: \"tan\" })",
            Code::BadValue,
            "`approximate` must be one of \"none\", \"tanh\", found",
        ),
        (
            "nn::dropout(ones([3]), 1.5)",
            Code::BadValue,
            "`p` of dropout must be from 0 to 1, found 1.5",
        ),
        (
            "nn::embedding(tensor([7]), ones([7, 2]))",
            Code::TokenId,
            "`embedding`: ids must be from 0 to 6, found 7",
        ),
        (
            "nn::embedding(tensor([1.0]), ones([7, 2]))",
            Code::WrongType,
            "`embedding` needs int64 ids, found float32",
        ),
        (
            "nn::cross_entropy(ones([2, 3]), tensor([0, 3]))",
            Code::BadValue,
            "`cross_entropy`: targets must be from 0 to 2, found 3",
        ),
        (
            "nn::cross_entropy(ones([2, 3, 4]), tensor([[0, 1, 2], [0, 1, 2]]))",
            Code::Shape,
            "`cross_entropy` of logits [2, 3, 4] needs targets [2, 4], found [2, 3]",
        ),
        (
            "nn::cross_entropy(ones([2, 3]), tensor([0, 1]), #{ reduction: \"avg\" })",
            Code::BadValue,
            "`reduction` must be one of \"mean\", \"sum\", \"none\", found",
        ),
        (
            "let q = ones([1, 2, 4]); nn::scaled_dot_product_attention(q, q, ones([1, 3, 4]))",
            Code::Shape,
            "`scaled_dot_product_attention` cannot take q [1, 2, 4], k [1, 2, 4] and v [1, 3, 4]",
        ),
        ("optimizer([ones([2])])", Code::CallOrder, "parameter `0` does not ask for its gradient"),
        ("optimizer([])", Code::BadValue, "`optimizer` needs at least one tensor"),
        ("W optimizer([w, w])", Code::BadValue, "parameters `0` and `1` are the same tensor"),
        (
            "W optimizer([w * 2])",
            Code::CallOrder,
            "parameter `0` was computed from other tensors and keeps no gradient",
        ),
        (
            "W optimizer([w], #{ type: \"AdamX\" })",
            Code::BadValue,
            "`optimizer.type` must be one of",
        ),
        (
            "W optimizer([w], #{ lr: -1 })",
            Code::BadValue,
            "`optimizer.lr` must be 0 or more, found -1",
        ),
        (
            "W optimizer(#{ w: w }, #{ no_decay: [\"b\"] })",
            Code::BadValue,
            "`optimizer.no_decay[0]`: no parameter of the model has a name like \"b\"",
        ),
        (
            "W let opt = optimizer([w]); opt.lr = -1",
            Code::BadValue,
            "`lr` must be 0 or more, found -1",
        ),
        (
            "no_grad(|| ones([2]).item())",
            Code::Shape,
            "`item` needs a tensor with one value, found shape [2]",
        ),
    ];
    let recipe: String = cases
        .iter()
        .map(|(mistake, _, _)| {
            let mistake = mistake.replace("W ", leaf);
            format!("try {{ {mistake}; print(\"nothing\"); }} catch (e) {{ print(`${{e.code}} ${{e.message}}`); }}\n")
        })
        .collect();
    let found = Recipe::new(&recipe).prints();
    assert_eq!(found.len(), cases.len());
    let mut wrong = Vec::new();
    for ((mistake, code, message), found) in cases.iter().zip(&found) {
        if !found.starts_with(&format!("{} {message}", code.number())) {
            wrong.push(format!("{mistake}\n    {found}\n    {} {message}", code.number()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The place of a mistake in options is that of the option.
#[test]
fn mistakes_have_their_places() {
    let fails = |text: &str| places(&Recipe::new(text).fails());
    let option =
        |text: &str| fails(&format!("let w = ones([2], #{{ requires_grad: true }});\n{text}"));
    assert_eq!(
        option("optimizer([w], #{ type: \"SGD\", momentum: 1.5 });"),
        [(Code::BadValue, "recipe.rhai:2:42".to_owned())]
    );
    assert_eq!(fails("nn::linaer(1, 2);"), [(Code::UnknownFunction, "recipe.rhai:1:5".to_owned())]);
    assert_eq!(fails("let t = zeros([2, -1]);"), [(Code::Shape, "recipe.rhai:1:9".to_owned())]);
}
