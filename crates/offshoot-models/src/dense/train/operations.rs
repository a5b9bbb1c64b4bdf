//! The operations of a step of training, each with its way back.

use candle_core::{Tensor, Var};

use super::super::ops::{self, AttentionShape, Gate, RmsNorm, Rope};
use super::super::primitives;
use super::run::TrainRun;
use super::tape::{Flow, Traced};
use crate::{Activation, Error, LinearId, Output, VectorId};

impl<'a> TrainRun<'a> {
    /// A result whose gradient `back` takes on, if one is wanted.
    pub(super) fn traced(
        &mut self,
        tensor: Tensor,
        wanted: bool,
        back: impl FnOnce(&Tensor, &mut Flow<'_>) -> Result<(), Error> + 'a,
    ) -> Traced<'a> {
        match self.tape.as_mut().filter(|_| wanted) {
            Some(tape) => tape.push(tensor, back),
            None => Traced::constant(tensor),
        }
    }

    /// What `f` makes of `x` by the tensor library's operations, which remember how.
    pub(super) fn composed(
        &mut self,
        x: &Traced<'a>,
        f: impl FnOnce(&Tensor) -> Result<Tensor, Error>,
    ) -> Result<Traced<'a>, Error> {
        let leaf = x.place.map(|_| Var::from_tensor(&x.tensor)).transpose()?;
        let result = f(leaf.as_ref().map_or(&x.tensor, Var::as_tensor))?;
        let leaves: Vec<_> = leaf.into_iter().map(|leaf| (x.place, leaf)).collect();
        let (detached, wanted) = (result.detach(), result.track_op());
        Ok(self.traced(detached, wanted, move |g, flow| flow.through(&result, g, &leaves)))
    }

    /// Our own norm where it suits, so that its bits do not depend on whether a gradient is wanted.
    pub(super) fn normed(
        &mut self,
        x: &Traced<'a>,
        vector: VectorId,
        eps: f32,
    ) -> Result<Traced<'a>, Error> {
        let weight = self.weights.vector(vector)?;
        if !self.weights.suits(&[&x.tensor, &weight]) {
            return self.composed(x, |x| Ok(primitives::rms_norm_composed(x, &weight, eps)?));
        }
        let y = RmsNorm::new(eps).of(&x.tensor, &weight)?;
        let (kept, place, of) = (x.kept(), x.place, weight.clone());
        let wanted = (place.is_some(), weight.track_op());
        let traced = self.traced(y, wanted.0 || wanted.1, move |g, flow| {
            let (dx, dw) = RmsNorm::new(eps).gradients(&kept.get()?, &of, g, wanted)?;
            flow.add(place, dx)?;
            flow.add_variable(&of, dw)
        });
        let kept = x.kept();
        Ok(traced.made_again(move || Ok(RmsNorm::new(eps).of(&kept.get()?, &weight)?)))
    }

    /// The product of a matrix with `x`; without its value if nobody reads that.
    pub(super) fn product(
        &mut self,
        linear: LinearId,
        x: &Traced<'a>,
        read: bool,
    ) -> Result<Traced<'a>, Error> {
        let weights = self.weights;
        let Some((op, pair)) = weights.untrained(linear, &x.tensor)? else {
            return self.composed(x, |x| weights.multiply(linear, x, None));
        };
        let y = match read {
            true => op.of(&x.tensor, pair.as_ref())?,
            false => x.tensor.clone(),
        };
        let place = x.place;
        let Some(pair) = pair else {
            return Ok(self.traced(y, place.is_some(), move |g, flow| {
                flow.add(place, Some(op.input_gradient(g)?))
            }));
        };
        let kept = x.kept();
        let wanted = (place.is_some(), pair.a.track_op(), pair.b.track_op());
        Ok(self.traced(y, wanted.0 || wanted.1 || wanted.2, move |g, flow| {
            let (dx, da, db) = op.gradients(&kept.get()?, &pair, g, wanted)?;
            flow.add(place, dx)?;
            flow.add_variable(&pair.a, da)?;
            flow.add_variable(&pair.b, db)
        }))
    }

    pub(super) fn sum(&mut self, x: &Traced<'a>, y: &Traced<'a>) -> Result<Traced<'a>, Error> {
        let sum = ops::added(&x.tensor, &y.tensor)?;
        Ok(self.same_gradient(sum, x, y))
    }

    /// A result whose gradient is also that of `x` and `y`.
    pub(super) fn same_gradient(
        &mut self,
        sum: Tensor,
        x: &Traced<'a>,
        y: &Traced<'a>,
    ) -> Traced<'a> {
        let places = [x.place, y.place];
        self.traced(sum, places.iter().any(Option::is_some), move |g, flow| {
            places.iter().try_for_each(|place| flow.add(*place, Some(g.clone())))
        })
    }

    /// Queries or keys, `[rows, heads * head_dim]`, normed head by head and rotated.
    pub(super) fn turned(
        &mut self,
        x: Output,
        norm: Option<(VectorId, f32)>,
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<Traced<'a>, Error> {
        let x = self.output(x)?;
        let ((rows, width), d) = (x.tensor.dims2()?, self.weights.model.config().head_dim);
        let norm = norm.map(|(weight, eps)| Ok::<_, Error>((self.weights.vector(weight)?, eps)));
        let norm = norm.transpose()?;
        let weights = self.weights;
        let own = norm.as_ref().is_none_or(|(weight, _)| weights.suits(&[&x.tensor, weight]));
        if !own || !weights.suits(&[&x.tensor, cos, sin]) {
            return self.composed(&x, |x| {
                let mut heads = x.reshape((rows, (), d))?;
                if let Some((weight, eps)) = &norm {
                    heads = primitives::rms_norm_composed(&heads, weight, *eps)?;
                }
                Ok(primitives::rotate_composed(&heads, cos, sin)?.reshape((rows, width))?)
            });
        }
        let rope = Rope::new(cos, sin)?;
        let heads = x.tensor.reshape((rows, (), d))?;
        let normed = match &norm {
            Some((weight, eps)) => RmsNorm::new(*eps).of(&heads, weight)?,
            None => heads,
        };
        let y = rope.of(&normed)?.reshape((rows, width))?;
        let place = x.place;
        // The way back of a rotation does not need what was turned, that of a norm does.
        let norm = norm.map(|(weight, eps)| (weight, eps, x.kept()));
        let trained = norm.as_ref().is_some_and(|(weight, ..)| weight.track_op());
        Ok(self.traced(y, place.is_some() || trained, move |g, flow| {
            let mut dx = rope.gradient(&g.reshape((rows, (), d))?)?;
            if let Some((weight, eps, x)) = norm {
                let heads = x.get()?.reshape((rows, (), d))?;
                let wanted = (place.is_some(), trained);
                let (of_heads, dw) = RmsNorm::new(eps).gradients(&heads, &weight, &dx, wanted)?;
                flow.add_variable(&weight, dw)?;
                let Some(of_heads) = of_heads else { return Ok(()) };
                dx = of_heads;
            }
            flow.add(place, Some(dx.reshape((rows, width))?))
        }))
    }

    /// `activation(gate) * up`.
    pub(super) fn gate(
        &mut self,
        gate: &Traced<'a>,
        up: &Traced<'a>,
        activation: Activation,
    ) -> Result<Traced<'a>, Error> {
        if !self.weights.suits(&[&gate.tensor, &up.tensor]) {
            let width = gate.tensor.dims2()?.1;
            let joined = self.joined(&[gate, up])?;
            return self.composed(&joined, |all| {
                let (gate, up) = (all.narrow(1, 0, width)?, all.narrow(1, width, width)?);
                Ok(primitives::gate_composed(&gate, &up, activation)?)
            });
        }
        let op = Gate { activation };
        let (x, u) = (gate.tensor.clone(), up.tensor.clone());
        let y = op.of(&x, &u)?;
        let places = [gate.place, up.place];
        let traced = self.traced(y, places.iter().any(Option::is_some), {
            let (x, u) = (x.clone(), u.clone());
            move |g, flow| {
                let gradients = Gate { activation }.gradients(&x, &u, g)?;
                let mut each = places.into_iter().zip(gradients);
                each.try_for_each(|(place, gradient)| flow.add(place, Some(gradient)))
            }
        });
        Ok(traced.made_again(move || Ok(op.of(&x, &u)?)))
    }

    pub(super) fn attended(
        &mut self,
        [q, k, v]: [&Traced<'a>; 3],
        shape: AttentionShape,
    ) -> Result<Traced<'a>, Error> {
        let tensors = [&q.tensor, &k.tensor, &v.tensor];
        if !self.weights.suits(&tensors) {
            return self.attend_composed([q, k, v], &shape);
        }
        let op = ops::Attention { shape };
        let y = op.of(tensors)?;
        let places = [q.place, k.place, v.place];
        let [q, k, v] = tensors.map(Tensor::contiguous);
        let (q, k, v) = (q?, k?, v?);
        Ok(self.traced(y, places.iter().any(Option::is_some), move |g, flow| {
            let gradients = op.gradients([&q, &k, &v], g)?;
            let mut each = places.into_iter().zip(gradients);
            each.try_for_each(|(place, gradient)| flow.add(place, Some(gradient)))
        }))
    }

    /// The attention of each text, of the tensor library's operations.
    pub(super) fn attend_composed(
        &mut self,
        [q, k, v]: [&Traced<'a>; 3],
        shape: &AttentionShape,
    ) -> Result<Traced<'a>, Error> {
        let widths = [q, k, v].map(|x| x.tensor.dims2().map(|(_, width)| width));
        let [wide, narrow, _] = widths;
        let (wide, narrow) = (wide?, narrow?);
        let masks = shape.lengths.iter().map(|&rows| self.mask(rows, shape.window));
        let masks = masks.collect::<Result<Vec<_>, _>>()?;
        // One tensor of all three, so that there is one way back.
        let joined = self.joined(&[q, k, v])?;
        self.composed(&joined, |all| {
            let q = all.narrow(1, 0, wide)?;
            let k = all.narrow(1, wide, narrow)?;
            let v = all.narrow(1, wide + narrow, narrow)?;
            attend_composed([&q, &k, &v], shape, &masks)
        })
    }

    /// Tensors beside each other.
    pub(super) fn joined(&mut self, parts: &[&Traced<'a>]) -> Result<Traced<'a>, Error> {
        let tensors: Vec<&Tensor> = parts.iter().map(|part| &part.tensor).collect();
        let all = Tensor::cat(&tensors, 1)?;
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            places.push((part.place, part.tensor.dim(1)?));
        }
        let wanted = places.iter().any(|(place, _)| place.is_some());
        Ok(self.traced(all, wanted, move |g, flow| {
            let mut first = 0;
            for (place, width) in places {
                flow.add(place, Some(g.narrow(1, first, width)?.contiguous()?))?;
                first += width;
            }
            Ok(())
        }))
    }
}

/// The attention of each text, masked with its own of `masks`, of the tensor library's operations.
fn attend_composed(
    [q, k, v]: [&Tensor; 3],
    shape: &AttentionShape,
    masks: &[Tensor],
) -> Result<Tensor, Error> {
    let (mut attended, mut first) = (Vec::with_capacity(shape.lengths.len()), 0);
    for (&rows, mask) in shape.lengths.iter().zip(masks) {
        let of = |x: &Tensor| x.narrow(0, first, rows)?.reshape((rows, (), shape.head_dim));
        let by_head = |x: &Tensor| of(x)?.transpose(0, 1)?.contiguous();
        let (k, v) = (by_head(k)?, by_head(v)?);
        attended.push(primitives::attend(&of(q)?, &k, &v, mask, shape.scale)?);
        first += rows;
    }
    Ok(Tensor::cat(&attended, 0)?)
}
