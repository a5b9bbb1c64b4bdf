//! A layer's experts in a step of the packed executor.
//!
//! The step's rows are put in order of their experts, a row once for each of its own, so that an expert
//! streams through the processor once a step. Two jobs of the team do the work of all experts, however
//! few rows there are: gates and ups, then downs. What a row gets is the same to the bit whichever
//! rows are beside it.

use offshoot_kernels::{
    Activations, Cpu, FormingScratch, GatedPair, KvCache, Part, Routes, multiply_gated_parts,
    multiply_part, multiply_parts,
};

use super::executor::{PackedExecutor, Rows, Run, forms_for};
use super::hooks::{Hooks, SegmentRows};
use super::weights::PackedModel;
use crate::{Error, ExpertLayer, Input, LinearId, ModelConfig, Segment};

/// What layers of experts run in.
#[derive(Debug)]
pub(super) struct ExpertRegisters {
    /// What the router says of each row.
    scores: Rows,
    routes: Routes,
    /// The inputs of the rows in order of experts.
    inputs: Activations,
    gated: Activations,
    /// The two products of a gate, where someone adds to them or perturbs them.
    gate: Rows,
    up: Rows,
    /// What each expert makes of its rows.
    products: Rows,
}

impl ExpertRegisters {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let (experts, inner) = match &config.experts {
            Some(experts) => (experts.num_experts, experts.moe_intermediate_size),
            None => (0, 0),
        };
        Self {
            scores: Rows::new(experts),
            routes: Routes::default(),
            inputs: Activations::new(),
            gated: Activations::new(),
            gate: Rows::new(inner),
            up: Rows::new(inner),
            products: Rows::new(config.hidden_size),
        }
    }
}

impl Run<'_, '_> {
    pub(super) fn run_experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        self.registers.experts.scores.reserve(self.rows);
        let forms = self.forms(self.model.config().hidden_size);
        self.product(x, layer.router, |r| &mut r.experts.scores, false);
        let PackedExecutor { cpu, normed, attended, experts, .. } = &mut *self.registers;
        let acts = match x {
            Input::Normed => normed,
            Input::Attended => attended,
            Input::Gated => {
                return Err(Error::Step("a gated register is not gated again".to_owned()));
            }
        };
        let ExpertRegisters { scores, routes, inputs, products, .. } = experts;
        routes.choose(cpu.isa(), scores.get_mut(self.rows), layer.rule);
        let (x, cols, rows) = (acts.x(), acts.cols(), routes.rows());
        inputs.fill(cpu, (rows.len(), cols), forms, |place, out| {
            let row = rows[place] as usize;
            out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        });
        products.reserve(rows.len());
        if self.any_hooked(layer) {
            self.hooked_experts(layer);
        } else {
            self.plain_experts(layer);
        }
        let PackedExecutor { cpu, stream, experts, .. } = &mut *self.registers;
        let ExpertRegisters { routes, products, .. } = experts;
        routes.add_shares(
            cpu,
            products.get(routes.rows().len()),
            stream.residual.get_mut(self.rows),
        );
        Ok(())
    }

    /// Whether someone adds to or perturbs an expert that has rows in this step.
    fn any_hooked(&self, layer: ExpertLayer) -> bool {
        let parts = self.registers.experts.routes.parts();
        parts.iter().map(|part| part.matrix).any(|expert| {
            let matrices = [layer.gate(expert), layer.up(expert), layer.down(expert)];
            matrices.into_iter().any(|linear| self.hooked(linear))
        })
    }

    fn plain_experts(&mut self, layer: ExpertLayer) {
        let model = self.model;
        let matrix = |linear| &model.linear(linear).matrix;
        let pair = |expert| GatedPair {
            gate: (matrix(layer.gate(expert)), None),
            up: (matrix(layer.up(expert)), None),
            activation: layer.activation,
        };
        let PackedExecutor { cpu, experts, .. } = &mut *self.registers;
        let ExpertRegisters { routes, inputs, gated, gate, products, .. } = experts;
        let forms = forms_for(model.forms, gate.width());
        multiply_gated_parts(cpu, inputs, routes.parts(), pair, forms, gated);
        let products = products.get_mut(routes.rows().len());
        multiply_parts(cpu, gated, routes.parts(), |e| matrix(layer.down(e)), products);
    }

    fn hooked_experts(&mut self, layer: ExpertLayer) {
        let forms = self.forms(self.registers.experts.gate.width());
        let PackedExecutor { cpu, experts, forming: room, .. } = &mut *self.registers;
        let ExpertRegisters { routes, inputs, gated, gate, up, products, .. } = experts;
        let places = routes.rows().len();
        let (model, segments, hooks) = (self.model, &*self.segments, &mut *self.hooks);
        let mut multiply = Hooked { model, cpu, segments, hooks, routes, room };
        gate.reserve(places);
        up.reserve(places);
        for &part in routes.parts() {
            multiply.part(part, layer.gate(part.matrix), inputs, gate);
            multiply.part(part, layer.up(part.matrix), inputs, up);
        }
        let (width, isa) = (gate.width(), cpu.isa());
        let (gate, up) = (gate.get(places), up.get(places));
        gated.fill(cpu, (places, width), forms, |place, out| {
            let place = place * width..(place + 1) * width;
            layer.activation.gate(isa, &gate[place.clone()], &up[place], out);
        });
        for &part in routes.parts() {
            multiply.part(part, layer.down(part.matrix), gated, products);
        }
    }
}

/// Products that others reach into.
struct Hooked<'a, 's> {
    model: &'a PackedModel,
    cpu: &'a Cpu,
    segments: &'a [Segment<'s, KvCache>],
    hooks: &'a mut dyn Hooks,
    routes: &'a Routes,
    room: &'a mut FormingScratch,
}

impl Hooked<'_, '_> {
    /// The product of the rows of one expert, handed to whoever adds to it.
    fn part(&mut self, part: Part, linear: LinearId, acts: &Activations, out: &mut Rows) {
        let matrix = &self.model.linear(linear).matrix;
        let (width, cols) = (matrix.rows(), acts.cols());
        let out = &mut out.get_mut(part.end)[part.start * width..];
        let tokens = part.start..part.end;
        let forming = self.hooks.forming(linear).map(|forming| (forming, &mut *self.room));
        multiply_part(self.cpu, acts, tokens, matrix, forming, out);
        // The rows of a segment follow one another, and so do their places.
        let (mut row, mut place) = (0, part.start);
        for (segment, s) in self.segments.iter().enumerate() {
            row += s.tokens.len();
            let rest = &self.routes.rows()[place..part.end];
            let rows = rest.partition_point(|at| (*at as usize) < row);
            if rows > 0 && self.hooks.adds(linear, s.variant) {
                let which = SegmentRows { segment, variant: s.variant, rows };
                let x = &acts.x()[place * cols..(place + rows) * cols];
                let first = place - part.start;
                let y = &mut out[first * width..(first + rows) * width];
                self.hooks.addend(linear, which, x, y);
            }
            place += rows;
        }
    }
}
