//! The way back through a step of training.
//!
//! The forward pass writes down, operation by operation, how the gradient of a result becomes those of
//! what it was made of, and keeps what that needs and nothing else: what a pass over its numbers makes
//! again is not kept. The way back goes through the list from its end and lets go of each entry once it
//! is done. The first gradient of a tensor is taken as it is, others are added to it in the order in
//! which they come: the tensor library begins each with zeros, adds on one thread, and keeps all operands
//! to the end.
//!
//! What has no backward pass of its own here is an entry with the library's graph of it.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{Tensor, TensorId, Var};

use super::super::ops::added;
use crate::Error;

/// Makes a tensor once more.
type Make<'a> = Box<dyn Fn() -> Result<Tensor, Error> + 'a>;
/// Takes the gradient of a result to what it was made of.
type Back<'a> = Box<dyn FnOnce(&Tensor, &mut Flow<'_>) -> Result<(), Error> + 'a>;

/// A tensor that the way back needs.
#[derive(Clone)]
pub(super) enum Kept<'a> {
    /// It is kept.
    Tensor(Tensor),
    /// It is made when it is first asked for, and stays as long as somebody may ask again.
    Again(Rc<(OnceCell<Tensor>, Make<'a>)>),
}

impl Kept<'_> {
    pub(super) fn get(&self) -> Result<Tensor, Error> {
        match self {
            Self::Tensor(tensor) => Ok(tensor.clone()),
            Self::Again(again) => {
                let (made, make) = &**again;
                if let Some(tensor) = made.get() {
                    return Ok(tensor.clone());
                }
                let tensor = make()?;
                Ok(made.get_or_init(|| tensor).clone())
            }
        }
    }
}

/// A tensor of the forward pass, without a graph.
#[derive(Clone)]
pub(super) struct Traced<'a> {
    pub(super) tensor: Tensor,
    /// The place where its gradient is collected, if one is wanted.
    pub(super) place: Option<usize>,
    again: Option<Kept<'a>>,
}

impl<'a> Traced<'a> {
    /// A tensor without a gradient.
    pub(super) fn constant(tensor: Tensor) -> Self {
        Self { tensor, place: None, again: None }
    }

    /// The same tensor, which the way back makes again instead of keeping it.
    pub(super) fn made_again(self, make: impl Fn() -> Result<Tensor, Error> + 'a) -> Self {
        let again = self.place.map(|_| {
            let make: Make<'a> = Box::new(make);
            Kept::Again(Rc::new((OnceCell::new(), make)))
        });
        Self { again, ..self }
    }

    /// What the way back keeps of it.
    pub(super) fn kept(&self) -> Kept<'a> {
        self.again.clone().unwrap_or_else(|| Kept::Tensor(self.tensor.clone()))
    }
}

/// The operations of a forward pass whose results have gradients.
#[derive(Default)]
pub(super) struct Tape<'a> {
    entries: Vec<(usize, Back<'a>)>,
    places: usize,
}

impl<'a> Tape<'a> {
    fn place(&mut self) -> usize {
        self.places += 1;
        self.places - 1
    }

    /// A tensor that a gradient is asked of.
    pub(super) fn leaf(&mut self, tensor: Tensor) -> Traced<'a> {
        Traced { tensor, place: Some(self.place()), again: None }
    }

    /// The result of an operation, and its way back.
    pub(super) fn push(
        &mut self,
        tensor: Tensor,
        back: impl FnOnce(&Tensor, &mut Flow<'_>) -> Result<(), Error> + 'a,
    ) -> Traced<'a> {
        let traced = self.leaf(tensor);
        self.entries.extend(traced.place.map(|place| (place, Box::new(back) as Back<'a>)));
        traced
    }

    /// Goes back from `result`, whose gradient is `gradient`.
    pub(super) fn back<'v>(
        self,
        result: &Traced<'_>,
        gradient: Tensor,
        variables: &'v [(String, Var)],
    ) -> Result<Flow<'v>, Error> {
        let mut flow = Flow { places: HashMap::new(), found: HashMap::new(), variables };
        flow.add(result.place, Some(gradient))?;
        for (place, back) in self.entries.into_iter().rev() {
            if let Some(gradient) = flow.places.remove(&place) {
                back(&gradient, &mut flow)?;
            }
        }
        Ok(flow)
    }
}

/// Gradients on their way.
pub(super) struct Flow<'v> {
    places: HashMap<usize, Tensor>,
    found: HashMap<TensorId, Tensor>,
    variables: &'v [(String, Var)],
}

impl Flow<'_> {
    /// Adds to the gradient of a place, if there is one.
    pub(super) fn add(
        &mut self,
        place: Option<usize>,
        gradient: Option<Tensor>,
    ) -> Result<(), Error> {
        let (Some(place), Some(gradient)) = (place, gradient) else { return Ok(()) };
        let gradient = match self.places.remove(&place) {
            Some(before) => added(&before, &gradient)?,
            None => gradient,
        };
        self.places.insert(place, gradient);
        Ok(())
    }

    /// Adds to the gradient of a variable.
    pub(super) fn add_variable(
        &mut self,
        variable: &Tensor,
        gradient: Option<Tensor>,
    ) -> Result<(), Error> {
        let Some(gradient) = gradient else { return Ok(()) };
        let gradient = match self.found.remove(&variable.id()) {
            Some(before) => added(&before, &gradient)?,
            None => gradient,
        };
        self.found.insert(variable.id(), gradient);
        Ok(())
    }

    /// Goes back through the library's graph of `result`, which reads `leaves`, by their places.
    /// Gradients that the library made remember how: they are taken as numbers here.
    pub(super) fn through(
        &mut self,
        result: &Tensor,
        gradient: &Tensor,
        leaves: &[(Option<usize>, Var)],
    ) -> Result<(), Error> {
        let mut store = (result * gradient.detach())?.sum_all()?.backward()?;
        let mut found = |of: &Var| store.remove(of).map(|gradient| gradient.detach());
        for (place, leaf) in leaves {
            self.add(*place, found(leaf))?;
        }
        for (_, variable) in self.variables {
            let gradient = found(variable);
            self.add_variable(variable, gradient)?;
        }
        Ok(())
    }

    /// The gradient of a leaf.
    pub(super) fn take(&mut self, leaf: &Traced<'_>) -> Option<Tensor> {
        self.places.remove(&leaf.place?)
    }

    /// The gradients of the variables, in their order.
    pub(super) fn gradients(mut self) -> Vec<Option<Tensor>> {
        self.variables.iter().map(|(_, variable)| self.found.remove(&variable.id())).collect()
    }
}
