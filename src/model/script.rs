//! What a network computes in evaluation mode, as the body of a TorchScript method.
//!
//! In: the layers of a network, in the order in which it runs them. Out: lines of TorchScript that read `images` `[B, 3, H, W]` and
//! the tensors of `self` under their names on disk, and return features or the activations of one layer. Under `self.training`
//! batch norm takes the statistics of the batch and dropout drops, as PyTorch's own modules do. The text knows no sizes of images:
//! those that the network takes, it takes. Nothing can go wrong here; whoever writes the file runs it against the network.

use crate::model::layers::BatchNorm2d;

/// The body of a method.
#[derive(Debug)]
pub struct Source {
    /// Its lines, indented by four.
    pub body: String,
    /// Names on disk of the tensors that it reads.
    pub tensors: Vec<String>,
}

/// Lines that are being written, and the tensors that they read.
#[derive(Debug)]
pub(super) struct Script {
    lines: Vec<String>,
    fresh: usize,
    tensors: Vec<String>,
}

/// The name of a tensor in the text.
pub(super) type Value = String;

impl Script {
    pub(super) fn new() -> Self {
        Self { lines: Vec::new(), fresh: 0, tensors: Vec::new() }
    }

    /// The whole body.
    pub(super) fn finish(mut self, result: &str) -> Source {
        self.lines.push(format!("return {result}"));
        let body = self.lines.iter().map(|line| format!("    {line}\n")).collect();
        Source { body, tensors: self.tensors }
    }

    /// The expression for the tensor `which` of the layer `name`.
    fn tensor(&mut self, name: &str, which: &str) -> String {
        let name = format!("{name}.{which}");
        let expression = member(&name);
        self.tensors.push(name);
        expression
    }

    fn assign(&mut self, expression: &str) -> Value {
        let name = format!("x{}", self.fresh);
        self.fresh += 1;
        self.lines.push(format!("{name} = {expression}"));
        name
    }

    pub(super) fn conv(&mut self, x: &str, name: &str, bias: bool, stride: i64, padding: i64) -> Value {
        let weight = self.tensor(name, "weight");
        let bias = if bias { self.tensor(name, "bias") } else { "None".to_owned() };
        self.assign(&format!(
            "torch.conv2d({x}, {weight}, {bias}, [{stride}, {stride}], [{padding}, {padding}], [1, 1], 1)"
        ))
    }

    pub(super) fn batch_norm(&mut self, x: &str, name: &str) -> Value {
        let tensors =
            ["weight", "bias", "running_mean", "running_var"].map(|which| self.tensor(name, which)).join(", ");
        let (momentum, epsilon) = (BatchNorm2d::MOMENTUM, BatchNorm2d::EPSILON);
        self.assign(&format!("torch.batch_norm({x}, {tensors}, self.training, {momentum:e}, {epsilon:e}, True)"))
    }

    pub(super) fn relu(&mut self, x: &str) -> Value {
        self.assign(&format!("torch.relu({x})"))
    }

    pub(super) fn add(&mut self, x: &str, y: &str) -> Value {
        self.assign(&format!("torch.add({x}, {y})"))
    }

    pub(super) fn max_pool(&mut self, x: &str, kernel: i64, stride: i64, padding: i64) -> Value {
        self.assign(&format!(
            "torch.max_pool2d({x}, [{kernel}, {kernel}], [{stride}, {stride}], [{padding}, {padding}], [1, 1], False)"
        ))
    }

    pub(super) fn average_to(&mut self, x: &str, side: i64) -> Value {
        self.assign(&format!("torch.adaptive_avg_pool2d({x}, [{side}, {side}])"))
    }

    pub(super) fn flatten(&mut self, x: &str) -> Value {
        self.assign(&format!("torch.flatten({x}, 1, -1)"))
    }

    pub(super) fn dropout(&mut self, x: &str, share: f64) -> Value {
        self.assign(&format!("torch.dropout({x}, {share:e}, self.training)"))
    }

    pub(super) fn linear(&mut self, x: &str, name: &str) -> Value {
        let (weight, bias) = (self.tensor(name, "weight"), self.tensor(name, "bias"));
        self.assign(&format!("torch.linear({x}, {weight}, {bias})"))
    }
}

/// A name on disk as an expression: modules that are called by a number have to be asked for.
fn member(name: &str) -> String {
    name.split('.').fold("self".to_owned(), |owner, part| match part.parse::<u32>() {
        Ok(_) => format!("getattr({owner}, \"{part}\")"),
        Err(_) => format!("{owner}.{part}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_modules_are_asked_for() {
        assert_eq!(member("conv1.weight"), "self.conv1.weight");
        assert_eq!(member("layer1.0.downsample.1.bias"), "getattr(getattr(self.layer1, \"0\").downsample, \"1\").bias");
    }

    #[test]
    fn a_body_ends_with_what_it_returns_and_knows_what_it_reads() {
        let mut script = Script::new();
        let x = script.dropout("images", 0.5);
        let x = script.linear(&x, "fc");
        let source = script.finish(&x);
        let lines = [
            "    x0 = torch.dropout(images, 5e-1, self.training)",
            "    x1 = torch.linear(x0, self.fc.weight, self.fc.bias)",
            "    return x1",
        ];
        assert_eq!(source.body.lines().collect::<Vec<_>>(), lines);
        assert_eq!(source.tensors, ["fc.weight", "fc.bias"]);
    }
}
