//! Gradients of several processes.
//!
//! A record is empty where a micro-batch counts nothing; else the loss, the tokens, and of each variable
//! a byte that says whether it has a gradient, and its numbers. All travel as they were made: what they
//! add up to is made by each process, in one order.

use candle_core::Tensor;
use offshoot_models::Gradients;

use super::{FirstOrder, Micro, read, tensors};
use crate::Error;
use crate::tune::exchange::{Pieces, Writer};

impl FirstOrder {
    /// What each process made of its micro-batch, in the order of ranks.
    pub(super) fn gathered(&self, own: Micro) -> Result<Vec<Micro>, Error> {
        if self.exchange.size() == 1 {
            return Ok(vec![own]);
        }
        let record = own.as_ref().map_or(Ok(Vec::new()), record)?;
        let all = self.exchange.all_gather(&record)?;
        all.iter().enumerate().map(|(rank, record)| self.micro_of(rank, record)).collect()
    }

    fn micro_of(&self, rank: usize, record: &[u8]) -> Result<Micro, Error> {
        if record.is_empty() {
            return Ok(None);
        }
        let mut pieces = Pieces::of(rank, record);
        let (loss, tokens) = (pieces.f64()?, pieces.u64()? as usize);
        let variables = self.tuning.variables().iter();
        let found = variables.map(|(_, variable)| {
            if pieces.u8()? == 0 {
                return Ok(None);
            }
            let numbers = pieces.f32s(variable.elem_count())?;
            let tensor = Tensor::from_slice(&numbers, variable.dims(), variable.device());
            tensor.map(Some).map_err(tensors)
        });
        let found = found.collect::<Result<Vec<_>, Error>>()?;
        Ok(Some((Gradients { loss, tensors: found, drafts: Vec::new() }, tokens)))
    }
}

fn record((gradients, tokens): &(Gradients, usize)) -> Result<Vec<u8>, Error> {
    let mut record = Writer::default();
    record.f64(gradients.loss);
    record.u64(*tokens as u64);
    for gradient in &gradients.tensors {
        record.0.push(u8::from(gradient.is_some()));
        if let Some(gradient) = gradient {
            record.f32s(&read(gradient)?);
        }
    }
    Ok(record.0)
}
