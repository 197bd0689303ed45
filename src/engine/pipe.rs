//! The flows between the stages of a pipeline, and their gradients.
//!
//! A flow is sent beside the computation, and its buffer lives until it has arrived. Its sizes follow
//! from the batch: both ends learn them from the first flow of a batch of this shape, and nothing but
//! the flow is sent from then on.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use super::placement::Placement;
use crate::{
    data::Batch,
    dist::{Link, Mesh, ProcessGroup, Work},
    error::{Code, Error, Result},
    model::{Flow, Masks, Pipeline},
    tensor::{Device, Kind, Tensor},
};

/// Dimensions of a part of a flow, at most.
const MOST_DIMENSIONS: usize = 4;
/// Numbers that tell one part: its format, its number of dimensions, and these.
const PART: usize = 2 + MOST_DIMENSIONS;
/// The formats that a flow can have.
const KINDS: [Kind; 4] = [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double];

/// The ends of the neighbouring stages.
pub(super) struct Pipe {
    mesh: Rc<Mesh>,
    placement: Placement,
    /// What comes from the stage before, by the shape of the batch.
    incoming: RefCell<BTreeMap<BatchShape, FlowSizes>>,
    /// What goes to the stage after.
    outgoing: RefCell<BTreeMap<BatchShape, FlowSizes>>,
    /// The transfers that are under way.
    sending: RefCell<VecDeque<Work>>,
}

/// What the sizes of a flow depend on.
pub(super) type BatchShape = Vec<i64>;

/// The format and the sizes of each part of a flow.
type FlowSizes = [Option<(Kind, Vec<i64>)>; 3];

/// The shape of a batch, with whether its masks hide padding: a bias of scores is then one for each row.
pub(super) fn shape_of(batch: &Batch, masks: &Masks) -> BatchShape {
    let is_padded = i64::from(masks.padding().is_some());
    [batch.input_ids().size(), batch.labels().size(), vec![is_padded]].concat()
}

impl Pipe {
    pub(super) fn new(mesh: &Rc<Mesh>, placement: &Placement) -> Self {
        let (incoming, outgoing, sending) = Default::default();
        let placement = placement.clone();
        Self { mesh: Rc::clone(mesh), placement, incoming, outgoing, sending }
    }

    /// The flow of a batch of this shape from the stage before; `None` for the first stage.
    pub(super) fn receive(&self, shape: &BatchShape) -> Result<Option<Flow>> {
        let Some(link) = self.mesh.previous() else { return Ok(None) };
        let known = self.incoming.borrow().get(shape).cloned();
        let sizes = match known {
            Some(sizes) => sizes,
            None => {
                let sizes = receive_sizes(&link.forward)?;
                self.incoming.borrow_mut().insert(shape.clone(), sizes.clone());
                sizes
            }
        };
        receive_parts(&link.forward, &sizes).map(Some)
    }

    /// Starts to send the flow of a batch of this shape to the stage after, if there is one.
    pub(super) fn send(&self, shape: &BatchShape, flow: &Flow) -> Result<()> {
        let Some(link) = self.mesh.next() else { return Ok(()) };
        if !self.outgoing.borrow().contains_key(shape) {
            let sizes = sizes_of(flow);
            self.start(link.forward.send(&header(&sizes, link.forward.device())?)?)?;
            self.outgoing.borrow_mut().insert(shape.clone(), sizes);
        }
        parts(flow).into_iter().flatten().try_for_each(|part| self.send_part(&link.forward, part))
    }

    /// The gradient of the flow that was sent for a batch of this shape; `None` for the last stage.
    pub(super) fn receive_gradient(&self, shape: &BatchShape) -> Result<Option<Flow>> {
        // A backward pass is about to need the memory of gradients that have arrived.
        self.let_go()?;
        let Some(link) = self.mesh.next() else { return Ok(None) };
        let sizes = self.outgoing.borrow().get(shape).cloned().ok_or_else(out_of_order)?;
        receive_parts(&link.backward, &sizes).map(Some)
    }

    /// Starts to send the gradient of the flow that was received for a batch of this shape, if there
    /// was one.
    pub(super) fn send_gradient(&self, shape: &BatchShape, gradient: &Flow) -> Result<()> {
        let Some(link) = self.mesh.previous() else { return Ok(()) };
        let sizes = self.incoming.borrow().get(shape).cloned().ok_or_else(out_of_order)?;
        for (part, size) in parts(gradient).into_iter().zip(sizes) {
            let Some((kind, size)) = size else { continue };
            match part {
                Some(part) => self.send_part(&link.backward, &part.f_to_kind(kind)?)?,
                // What nothing depends on.
                None => {
                    let like = (kind, link.backward.device());
                    self.send_part(&link.backward, &Tensor::f_zeros(&size[..], like)?)?;
                }
            }
        }
        Ok(())
    }

    fn send_part(&self, to: &ProcessGroup, part: &Tensor) -> Result<()> {
        self.start(to.send(&part.f_contiguous()?)?)
    }

    /// Keeps a transfer until it is over, and lets go of those that are.
    fn start(&self, work: Work) -> Result<()> {
        self.let_go()?;
        self.sending.borrow_mut().push_back(work);
        Ok(())
    }

    /// Lets go of the transfers that are over, and so of what they sent.
    fn let_go(&self) -> Result<()> {
        let mut sending = self.sending.borrow_mut();
        while let Some(first) = sending.pop_front() {
            if !first.is_completed()? {
                sending.push_front(first);
                break;
            }
            first.wait()?;
        }
        Ok(())
    }

    /// Waits until all that was sent has arrived.
    pub(super) fn flush(&self) -> Result<()> {
        let mut sending = self.sending.borrow_mut();
        while let Some(work) = sending.pop_front() {
            work.wait()?;
        }
        Ok(())
    }

    fn link(link: Option<&Link>) -> Result<&Link> {
        link.ok_or_else(|| Error::new(Code::Internal, "a stage without a neighbour"))
    }
}

impl Pipeline for Pipe {
    fn receive_any(&self) -> Result<Flow> {
        let link = Self::link(self.mesh.previous())?;
        receive_parts(&link.forward, &receive_sizes(&link.forward)?)
    }

    fn send_any(&self, flow: &Flow) -> Result<()> {
        let link = Self::link(self.mesh.next())?;
        self.start(link.forward.send(&header(&sizes_of(flow), link.forward.device())?)?)?;
        parts(flow).into_iter().flatten().try_for_each(|part| self.send_part(&link.forward, part))
    }

    fn share(&self, result: Option<&Tensor>) -> Result<Tensor> {
        self.flush()?;
        let (pp, last) = (self.mesh.pp(), self.mesh.shape().pp - 1);
        let told = match result {
            Some(result) => {
                header(&[Some((result.kind(), result.size())), None, None], pp.device())?
            }
            None => Tensor::f_zeros([3 * PART as i64], (Kind::Int64, pp.device()))?,
        };
        pp.broadcast(&told, last)?;
        let [Some((kind, size)), ..] = sizes_in(&told)? else { return Err(out_of_order()) };
        let whole = match result {
            Some(result) => result.f_contiguous()?,
            None => Tensor::f_empty(&size[..], (kind, pp.device()))?,
        };
        pp.broadcast(&whole, last)?;
        Ok(whole)
    }

    fn any(&self, flag: bool) -> Result<bool> {
        self.mesh.world().any(flag)
    }

    fn owns(&self, unit: usize) -> bool {
        self.placement.owner(unit) == self.mesh.place().pp
    }

    fn bring(&self, unit: usize, part: Option<&Tensor>, like: (&[i64], Kind)) -> Result<Tensor> {
        let ((size, kind), pp) = (like, self.mesh.pp());
        let whole = match part {
            Some(part) => part.f_detach()?.f_to_device(pp.device())?.f_contiguous()?,
            None => Tensor::f_empty(size, (kind, pp.device()))?,
        };
        pp.broadcast(&whole, self.placement.owner(unit))?;
        Ok(whole)
    }
}

fn parts(flow: &Flow) -> [Option<&Tensor>; 3] {
    [Some(&flow.hidden).filter(|x| x.defined()), flow.encoded.as_ref(), flow.bias.as_ref()]
}

fn sizes_of(flow: &Flow) -> FlowSizes {
    parts(flow).map(|part| part.map(|part| (part.kind(), part.size())))
}

/// Sizes as numbers.
fn header(sizes: &FlowSizes, device: Device) -> Result<Tensor> {
    let mut numbers = Vec::with_capacity(3 * PART);
    for part in sizes {
        let start = numbers.len();
        if let Some((kind, size)) = part {
            let kind = KINDS.iter().position(|known| known == kind);
            let kind = kind.filter(|_| size.len() <= MOST_DIMENSIONS).ok_or_else(|| {
                Error::new(Code::Internal, "a flow that cannot be sent to another stage")
            })?;
            // 0 says that there is no such part.
            numbers.extend([1 + kind as i64, size.len() as i64]);
            numbers.extend(size);
        }
        numbers.resize(start + PART, 0);
    }
    Ok(Tensor::f_from_slice(&numbers)?.f_to_device(device)?)
}

fn sizes_in(header: &Tensor) -> Result<FlowSizes> {
    let numbers = Vec::<i64>::try_from(header)?;
    let mut parts = numbers.chunks(PART).map(|part| {
        let kind = KINDS.get(usize::try_from(part[0] - 1).ok()?)?;
        let size = part[2..].iter().take(usize::try_from(part[1]).ok()?);
        Some((*kind, size.copied().collect::<Vec<i64>>()))
    });
    let mut next = || parts.next().flatten();
    Ok([next(), next(), next()])
}

fn receive_sizes(from: &ProcessGroup) -> Result<FlowSizes> {
    let header = Tensor::f_zeros([3 * PART as i64], (Kind::Int64, from.device()))?;
    from.receive(&header)?;
    sizes_in(&header)
}

fn receive_parts(from: &ProcessGroup, sizes: &FlowSizes) -> Result<Flow> {
    let part = |size: &Option<(Kind, Vec<i64>)>| -> Result<Option<Tensor>> {
        let Some((kind, size)) = size else { return Ok(None) };
        let part = Tensor::f_empty(&size[..], (*kind, from.device()))?;
        from.receive(&part)?;
        Ok(Some(part))
    };
    let [hidden, encoded, bias] = sizes;
    let hidden = part(hidden)?.ok_or_else(out_of_order)?;
    Ok(Flow { hidden, encoded: part(encoded)?, bias: part(bias)? })
}

fn out_of_order() -> Error {
    Error::new(Code::Internal, "the stages of a pipeline are out of order")
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        config::{EngineConfig, MeshShape, PipelineOptions},
        dist::Rendezvous,
        engine::{
            config,
            schedule::{Turn, one_f_one_b},
        },
        model::{Model, tiny_gpt2},
    };

    #[test]
    fn sizes_go_there_and_back() {
        let cases: [FlowSizes; 3] = [
            [Some((Kind::Float, vec![2, 3, 4])), None, None],
            [
                Some((Kind::BFloat16, vec![2, 3, 4])),
                Some((Kind::BFloat16, vec![2, 5, 4])),
                Some((Kind::BFloat16, vec![1, 2, 3, 3])),
            ],
            [Some((Kind::Double, vec![])), None, None],
        ];
        for sizes in cases {
            assert_eq!(sizes_in(&header(&sizes, Device::Cpu).unwrap()).unwrap(), sizes);
        }
        let integers = [Some((Kind::Int64, vec![1])), None, None];
        assert_eq!(header(&integers, Device::Cpu).unwrap_err().code(), Code::Internal);
    }

    const FORWARD: Duration = Duration::from_millis(10);
    const BACKWARD: Duration = Duration::from_millis(20);

    /// One step of a stage whose passes sleep: the time that it took.
    fn sleeping_step(pipe: &Pipe, mesh: &Mesh, micro_batches: usize) -> Duration {
        mesh.world().barrier().unwrap();
        let began = Instant::now();
        let flow = || Flow::of(Tensor::zeros([2, 4, 8], (Kind::Float, Device::Cpu)));
        let shape = vec![2, 4];
        for turn in one_f_one_b(mesh.place().pp, mesh.shape().pp, micro_batches) {
            match turn {
                Turn::Forward(_) => {
                    pipe.receive(&shape).unwrap();
                    thread::sleep(FORWARD);
                    pipe.send(&shape, &flow()).unwrap();
                }
                Turn::Backward => {
                    pipe.receive_gradient(&shape).unwrap();
                    thread::sleep(BACKWARD);
                    pipe.send_gradient(&shape, &flow()).unwrap();
                }
            }
        }
        pipe.flush().unwrap();
        began.elapsed()
    }

    /// The share of the time for which the stages of a pipeline wait, the least of a dozen steps: others
    /// use the cores too.
    fn idle_share(stages: usize, micro_batches: usize) -> f64 {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let run = |rank| {
            let rendezvous = Rendezvous {
                rank,
                world_size: stages,
                local_rank: rank,
                local_world_size: stages,
                master_addr: "127.0.0.1".into(),
                master_port: port,
                timeout: Duration::from_secs(60),
                interface: None,
                agent_store: None,
            };
            let world = Rc::new(ProcessGroup::connect(&rendezvous, Device::Cpu).unwrap());
            let shape = MeshShape { pp: stages, dp: 1, tp: 1 };
            let mesh = Rc::new(Mesh::new(&world, shape).unwrap());
            let sizes = [("vocab_size", 8), ("n_positions", 4), ("n_embd", 8), ("n_layer", 4)];
            let model = Model::outline(&tiny_gpt2(&sizes, 0.0, true), Device::Cpu).unwrap();
            let EngineConfig { mesh: asked, .. } = config(None);
            let options = PipelineOptions { stages, ..asked.pipeline };
            let pipe = Pipe::new(&mesh, &Placement::of(&model, options).unwrap());
            let steps = (0..12).map(|_| sleeping_step(&pipe, &mesh, micro_batches));
            steps.min().unwrap()
        };
        let took = thread::scope(|scope| {
            let ranks: Vec<_> = (0..stages).map(|rank| scope.spawn(move || run(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).max().unwrap()
        });
        let busy = (FORWARD + BACKWARD).as_secs_f64() * micro_batches as f64;
        1.0 - busy / took.as_secs_f64()
    }

    /// With `--nocapture` it prints the table of benches/README.md.
    #[test]
    #[ignore = "measures times, for which the cores should be free"]
    fn stages_wait_no_longer_than_the_schedule_says() {
        println!("stages  micro batches  (p - 1) / (m + p - 1)  measured");
        for (p, m) in [(2, 1), (4, 4), (4, 8), (4, 16)] {
            let expected = (p - 1) as f64 / (m + p - 1) as f64;
            let found = idle_share(p, m);
            println!("{p:6}  {m:13}  {:19.1} %  {:6.1} %", 100.0 * expected, 100.0 * found);
            assert!((found - expected).abs() < 0.02, "{p} stages, {m} micro batches: {found}");
        }
    }
}
