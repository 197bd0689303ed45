//! `optimizer` in scripts: the rules of `init_engine`'s optimizers over tensors of the recipe's own.
//!
//! Each tensor is a unit of one parameter of [`crate::optim`]; options are read as for an engine.

use std::rc::Rc;

use rhai::{Map, plugin::*};

use super::tensor::{Handle, autograd::zero_grad, check};
use crate::{
    config::OptimizerConfig,
    dist::ProcessGroup,
    error::{Code, Error, Result},
    optim::{self, OptimizerPlan, ParamLayout, StepRates, UnitLayout, UnitTensors},
    recipe::{error::ScriptResult, options, value::describe},
    script::{host, shared::Shared},
    tensor::{Kind, Tensor, check_memory, guard, no_grad},
};

/// An optimizer as a script value.
pub type Optimizer = Shared<ParamOptimizer>;

/// The option of `init_engine` that the options are read as.
const OPTION: &str = "optimizer";

/// An optimizer with the parameters that it updates.
pub struct ParamOptimizer {
    rules: optim::Optimizer,
    params: Vec<Param>,
    lr: f64,
}

struct Param {
    tensor: Handle,
    state: Vec<Tensor>,
    /// This process alone, on the tensor's device.
    group: Rc<ProcessGroup>,
    /// Steps in which it had a gradient, as PyTorch counts them.
    steps: u64,
}

/// Optimizers over tensors.
#[export_module]
pub mod api {
    /// An optimizer over tensors of the recipe. Made by `optimizer`.
    pub type Optimizer = super::Optimizer;

    /// Makes an AdamW with the defaults of `init_engine` over these tensors.
    #[rhai_fn(return_raw)]
    pub fn optimizer(ctx: NativeCallContext, params: Dynamic) -> ScriptResult<Optimizer> {
        optimizer_with(ctx, params, Map::new())
    }

    /// Makes an optimizer over tensors that ask for their gradient.
    ///
    /// * `params` - an array of tensors, or a map, whose keys are the names that patterns mean
    /// * `options` - as `optimizer` of `init_engine` has them: a `type` ("AdamW"), `lr`, and so on
    ///
    /// ```rhai
    /// let w = (randn([1, 3]) * 0.1).requires_grad_();
    /// let b = zeros([1], #{ requires_grad: true });
    /// let opt = optimizer(#{ w: w, b: b }, #{ type: "AdamW", lr: 1e-2, no_decay: ["b"] });
    /// for step in 0..10 {
    ///     let loss = nn::mse_loss(nn::linear(ones([4, 3]), w, b), zeros([4, 1]));
    ///     opt.zero_grad();
    ///     loss.backward();
    ///     opt.step();
    /// }
    /// ```
    #[rhai_fn(name = "optimizer", return_raw)]
    pub fn optimizer_with(
        ctx: NativeCallContext,
        params: Dynamic,
        options: Map,
    ) -> ScriptResult<Optimizer> {
        let ranks = host::of(&ctx)?.world_size()?;
        if ranks > 1 {
            let message = format!("`optimizer` updates one process's tensors, and {ranks} run");
            return Err(Error::new(Code::Dist, message)
                .hint("`init_engine` trains on several processes")
                .into());
        }
        Ok(Shared::new(super::make(&params, &options)?))
    }

    /// Updates every tensor that has a gradient.
    #[rhai_fn(return_raw, pure)]
    pub fn step(optimizer: &mut Optimizer) -> ScriptResult<()> {
        Ok(optimizer.write()?.step()?)
    }

    /// Sets the gradients to zero.
    #[rhai_fn(return_raw, pure)]
    pub fn zero_grad(optimizer: &mut Optimizer) -> ScriptResult<()> {
        for param in &optimizer.read()?.params {
            super::zero_grad(&param.tensor)?;
        }
        Ok(())
    }

    /// The learning rate of the next step. It can be set.
    ///
    /// ```rhai
    /// let opt = optimizer([zeros([1], #{ requires_grad: true })], #{ type: "SGD", lr: 0.1 });
    /// opt.lr = opt.lr * 0.5;
    /// ```
    #[rhai_fn(get = "lr", return_raw, pure)]
    pub fn lr(optimizer: &mut Optimizer) -> ScriptResult<f64> {
        Ok(optimizer.read()?.lr)
    }

    /// Sets the learning rate of the next steps.
    #[rhai_fn(set = "lr", return_raw, pure)]
    pub fn set_lr(optimizer: &mut Optimizer, lr: Dynamic) -> ScriptResult<()> {
        let lr: f64 = crate::recipe::value::argument("lr", &lr)?;
        if !(lr.is_finite() && lr >= 0.0) {
            let message = format!("`lr` must be a finite number, 0 or more, found {lr}");
            return Err(Error::new(Code::BadValue, message).into());
        }
        optimizer.write()?.lr = lr;
        Ok(())
    }

    /// Describes the optimizer.
    #[rhai_fn(name = "to_string", name = "to_debug", return_raw, pure)]
    pub fn describe(optimizer: &mut Optimizer) -> ScriptResult<String> {
        Ok(optimizer.read()?.describe())
    }
}

fn make(params: &Dynamic, options: &Map) -> Result<ParamOptimizer> {
    let wrapped = Map::from([(OPTION.into(), Dynamic::from_map(options.clone()))]);
    let config = options::read(OPTION, &wrapped, OptimizerConfig::read);
    let config = config.map_err(at_its_options)?;
    let params = named(params)?;
    let units: Vec<UnitLayout> = params.iter().map(unit).collect();
    let plan = OptimizerPlan::new(&config, &units, None).map_err(at_its_options)?;
    if let Some((_, first)) = params.first() {
        check_memory(first.tensor().device(), plan.state_bytes(), "the optimizer's state")?;
    }
    let rules = optim::Optimizer::new(plan);
    let mut groups: Vec<Rc<ProcessGroup>> = Vec::new();
    let with_state = |(i, (_, tensor)): (usize, (String, Handle))| {
        let device = tensor.tensor().device();
        let group = match groups.iter().find(|group| group.device() == device) {
            Some(group) => Rc::clone(group),
            None => {
                groups.push(Rc::new(ProcessGroup::single(device)?));
                Rc::clone(&groups[groups.len() - 1])
            }
        };
        let zeros =
            |(kind, len)| guard("optimizer", || Ok(Tensor::f_zeros([len], (kind, device))?));
        let state = rules.state_layout(i).into_iter().map(zeros).collect::<Result<_>>()?;
        Ok(Param { tensor, state, group, steps: 0 })
    };
    let params = params.into_iter().enumerate().map(with_state).collect::<Result<_>>()?;
    let lr = config.lr;
    Ok(ParamOptimizer { rules, params, lr })
}

/// The faults of options, with the paths that they have in this function's map.
fn at_its_options(error: Error) -> Error {
    let within = |fault: Error| {
        let path = fault.option_path().and_then(|path| path.strip_prefix("optimizer."));
        match path.map(str::to_owned) {
            Some(path) => fault.option(path),
            None => fault,
        }
    };
    let faults = error.split().into_iter().map(within).collect();
    Error::all(faults).unwrap_or_else(|| Error::new(Code::Internal, "an error without a fault"))
}

/// The parameters with their names, each fit to be trained.
fn named(params: &Dynamic) -> Result<Vec<(String, Handle)>> {
    let items: Vec<(String, Dynamic)> = if let Ok(map) = params.as_map_ref() {
        map.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    } else if let Ok(array) = params.as_array_ref() {
        array.iter().enumerate().map(|(i, value)| (i.to_string(), value.clone())).collect()
    } else {
        let found = describe(params);
        bail!(Code::WrongType, "`params` must be an array or a map of tensors, found {found}");
    };
    if items.is_empty() {
        bail!(Code::BadValue, "`optimizer` needs at least one tensor");
    }
    let mut named: Vec<(String, Handle)> = Vec::new();
    for (name, value) in items {
        let Some(handle) = value.clone().try_cast::<Handle>() else {
            let found = describe(&value);
            bail!(Code::WrongType, "parameter `{name}` must be a tensor, found {found}");
        };
        let t = handle.tensor();
        check::floating(&format!("parameter {name}"), t)?;
        if !t.requires_grad() {
            return Err(Error::new(
                Code::CallOrder,
                format!("parameter `{name}` does not ask for its gradient"),
            )
            .hint("make it with #{ requires_grad: true }, or call requires_grad_()"));
        }
        if !guard("optimizer", || Ok(t.f_is_leaf()?))? {
            return Err(Error::new(
                Code::CallOrder,
                format!("parameter `{name}` was computed from other tensors and keeps no gradient"),
            )
            .hint("ask for its gradient last: (randn([2]) * 0.1).requires_grad_()"));
        }
        let same = |(_, other): &&(String, Handle)| {
            t.numel() > 0 && other.tensor().data_ptr() == t.data_ptr()
        };
        if let Some((other, _)) = named.iter().find(same) {
            bail!(Code::BadValue, "parameters `{other}` and `{name}` are the same tensor");
        }
        named.push((name, handle));
    }
    Ok(named)
}

/// A tensor as a unit of one parameter.
fn unit((name, handle): &(String, Handle)) -> UnitLayout {
    let shape = handle.tensor().size();
    // A linear layer's weight is [out, in].
    let fans = match shape.as_slice() {
        &[outputs, inputs] => Some((inputs, outputs)),
        _ => None,
    };
    let param = ParamLayout { name: name.clone(), offset: 0, shape, fan_in_out: fans };
    UnitLayout { numel: param.numel(), params: vec![param] }
}

impl ParamOptimizer {
    fn step(&mut self) -> Result<()> {
        let rates = StepRates { lr: self.lr, betas: self.rules.config().betas() };
        for (i, param) in self.params.iter_mut().enumerate() {
            let t = param.tensor.tensor();
            let gradient = guard("step", || Ok(t.f_grad()?))?;
            if !gradient.defined() {
                continue;
            }
            let flat = |x: &Tensor, copy: bool| {
                let x = x.f_detach()?.f_to_device_(x.device(), Kind::Float, false, copy)?;
                Ok(x.f_contiguous()?.f_reshape([-1i64])?)
            };
            // The rules may overwrite the gradient.
            let grad = guard("step", || no_grad(|| flat(&gradient, true)))?;
            let weights = guard("step", || no_grad(|| flat(t, false)))?;
            self.rules.set_applied_steps(param.steps);
            let tensors = UnitTensors { param: &weights, grad: &grad, state: &param.state };
            self.rules.update(&param.group, &[(i, tensors)], rates, None)?;
            param.steps += 1;
            if weights.data_ptr() != t.data_ptr() {
                let (mut into, shape) = (t.shallow_clone(), t.size());
                guard("step", || no_grad(|| Ok(into.f_copy_(&weights.f_reshape(&shape)?)?)))?;
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let elements: usize = self.params.iter().map(|p| p.tensor.tensor().numel()).sum();
        let name = self.rules.config().name();
        let tensors = self.params.len();
        format!("Optimizer {name} over {tensors} tensors of {elements} elements, lr {:e}", self.lr)
    }
}
