// A position within a checkpoint's names, so that model code reads its weights as a walk down the module tree:
// `weights.at("down_blocks.0").at("resnets.1").floats("conv1.weight", [320, 320, 3, 3])`.

/// Reads the tensors below one prefix of a checkpoint.
///
/// A value.
struct WeightLoader {
    /// Where the tensors come from.
    let checkpoint: Checkpoint
    /// What stands before every name, without the final dot; empty at the root.
    let prefix: String
    /// Where layers that a LoRA may change are listed, and the part of the model they are of; nil for none.
    let adaptation: (list: AdapterList, part: ModelPart)?

    /// The root of a checkpoint.
    init(_ checkpoint: Checkpoint, adaptation: (list: AdapterList, part: ModelPart)? = nil) {
        self.init(checkpoint: checkpoint, prefix: "", adaptation: adaptation)
    }

    private init(checkpoint: Checkpoint, prefix: String, adaptation: (list: AdapterList, part: ModelPart)?) {
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.adaptation = adaptation
    }

    /// The loader of a child module, such as `attentions.0`.
    func at(_ path: String) -> WeightLoader {
        WeightLoader(checkpoint: checkpoint, prefix: name(path), adaptation: adaptation)
    }

    /// The full name of a tensor here.
    func name(_ key: String) -> String {
        prefix.isEmpty ? key : prefix + "." + key
    }

    /// Whether a tensor is there.
    func contains(_ key: String) -> Bool {
        checkpoint.contains(name(key))
    }

    /// A tensor as floats, in the order of the file.
    ///
    /// What is checked: `Checkpoint.withTensor(named:shape:body:)`.
    func floats(_ key: String, _ shape: [Int]) throws -> [Float] {
        try checkpoint.floats(named: name(key), shape: shape)
    }

    /// Writes a tensor as floats into memory of the caller's, of exactly its number of elements (traps otherwise).
    func read(_ key: String, _ shape: [Int], into output: UnsafeMutableBufferPointer<Float>) throws {
        try checkpoint.read(named: name(key), shape: shape, into: output)
    }

    /// Gives a tensor's stored bytes and their type to `body`.
    func withTensor<Result>(
        _ key: String,
        _ shape: [Int],
        body: (UnsafeRawBufferPointer, WeightType) throws -> Result
    ) throws -> Result {
        try checkpoint.withTensor(named: name(key), shape: shape, body: body)
    }
}
