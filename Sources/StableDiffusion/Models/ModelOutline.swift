// What is known of a model before it is loaded, from its configurations alone.

internal import TensorOps

/// A model in outline.
public struct ModelOutline: Sendable, Equatable {
    /// Folder or file name of the checkpoint, without its directory and a single file's ending.
    public var name: String
    /// Picture width and height the model was trained for, in pixels.
    public var nativeSize: Int
    /// What the width and height of every picture are multiples of, in pixels: 8, or more where one latent is larger.
    public var sizeMultiple: Int
    /// Bytes its weights take on the device, about.
    public var weightBytes: Int

    /// An outline from its parts.
    public init(name: String, nativeSize: Int, sizeMultiple: Int = 8, weightBytes: Int = 0) {
        self.name = name
        self.nativeSize = nativeSize
        self.sizeMultiple = sizeMultiple
        self.weightBytes = weightBytes
    }
}

/// What a model's file is called: without its directory, and without the ending of a checkpoint.
public func checkpointName(ofFile path: String) -> String {
    let last = path.split(separator: "/").last.map(String.init) ?? path
    let ending = [".safetensors", ".ckpt"].first { last.hasSuffix($0) && last != $0 }
    return String(last.dropLast(ending?.count ?? 0))
}

extension PipelineOptions {
    /// Reads a model's configurations, or the names and shapes in a single file; no weights, and no device.
    ///
    /// - Throws: `ConfigurationFileError`, `WeightsError`.
    public func outline() throws -> ModelOutline {
        try checkDirectories()
        let source = try ModelSource(path: modelPath, vae: vaePath, prediction: prediction)
        let configuration = try ModelConfiguration(source)
        let tensors =
            configuration.textEncoders.flatMap(\.tensors) + configuration.unet.tensors
            + configuration.vae.decoderTensors
        return ModelOutline(
            name: source.name,
            nativeSize: configuration.nativeSize,
            sizeMultiple: configuration.sizeMultiple,
            weightBytes: tensors.reduce(0) { $0 + $1.shape.reduce(1, *) } * ElementType(precision).byteCount
        )
    }
}
