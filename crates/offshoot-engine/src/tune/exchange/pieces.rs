//! Records as bytes: numbers with the lowest byte first.

use super::ExchangeError;

/// A record that is being written.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    pub(crate) fn f64(&mut self, number: f64) {
        self.0.extend(number.to_le_bytes());
    }

    pub(crate) fn f32s(&mut self, numbers: &[f32]) {
        numbers.iter().for_each(|number| self.0.extend(number.to_le_bytes()));
    }
}

/// What is left of a record of process `rank`.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    rank: usize,
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    pub(crate) fn of(rank: usize, rest: &'a [u8]) -> Self {
        Self { rank, rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// That this record is not what is sent here.
    pub(crate) fn wrong(&self, what: &'static str) -> ExchangeError {
        ExchangeError::Message { rank: self.rank, what }
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], ExchangeError> {
        let (bytes, rest) =
            self.rest.split_at_checked(n).ok_or_else(|| self.wrong("it is cut short"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ExchangeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ExchangeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ExchangeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ExchangeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, ExchangeError> {
        self.array().map(f64::from_le_bytes)
    }

    pub(crate) fn f32s(&mut self, n: usize) -> Result<Vec<f32>, ExchangeError> {
        let bytes = n.checked_mul(4).ok_or_else(|| self.wrong("too many numbers"))?;
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(self.bytes(bytes)?.chunks_exact(4).map(number).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_beyond_it() {
        let mut writer = Writer::default();
        writer.u64(7);
        writer.f64(-0.0);
        writer.f32s(&[1.5, f32::NAN]);
        let mut pieces = Pieces::of(3, &writer.0);
        assert_eq!(pieces.u64().unwrap(), 7);
        assert_eq!(pieces.f64().unwrap().to_bits(), (-0.0f64).to_bits());
        let numbers = pieces.f32s(2).unwrap();
        assert!(numbers[0] == 1.5 && numbers[1].is_nan() && pieces.is_empty());
        let told = pieces.u8().unwrap_err();
        assert_eq!(told, ExchangeError::Message { rank: 3, what: "it is cut short" });
    }
}
