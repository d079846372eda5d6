// Rebuilds the random-weight models of Tests/Fixtures/models as diffusers folders. The fixtures hold no weights: a
// tensor is Gaussian noise from a seed, times a deviation, plus a mean, exactly as scripts/fixtures/models.py drew it.

import Dispatch
import Foundation
package import JSON
internal import StableDiffusion
import Synchronization

/// A folder with a small random model, which lives as long as this value.
package final class RandomCheckpoint: Sendable {
    /// Element types a checkpoint can be written in.
    package enum Storage: Sendable {
        case float32, float16
    }

    /// The model folder.
    package let path: String
    /// The fixture it was made from.
    package let fixture: JSONValue
    private let directory: TemporaryDirectory

    /// What is wrong with a fixture.
    package struct FixtureError: Error {
        let reason: String
    }

    private static let built: Mutex<[String: RandomCheckpoint]> = {
        // Statics are not released at the end of a process, and the folders are to be removed.
        atexit { RandomCheckpoint.built.withLock { $0 = [:] } }
        return Mutex([:])
    }()

    /// The model of a fixture in float32, built once for all tests of a process.
    package static func shared(_ name: String) throws -> RandomCheckpoint {
        try built.withLock { built in
            if let checkpoint = built[name] { return checkpoint }
            let checkpoint = try RandomCheckpoint(name)
            built[name] = checkpoint
            return checkpoint
        }
    }

    /// Builds the model of a fixture.
    ///
    /// - Parameters:
    ///   - name: Such as `sd1`, for `Tests/Fixtures/models/sd1.json`.
    ///   - unet: What its UNet has more, or otherwise, as `config` and `tensors`.
    ///   - vae: Tensors that its autoencoder has more.
    package init(_ name: String, storage: Storage = .float32, unet: JSONValue = [:], vae: JSONValue = []) throws {
        fixture = try Fixture.json("models/\(name).json")
        directory = try TemporaryDirectory()
        path = directory.path
        for (file, content) in fixture["files"]?.objectValue ?? [:] {
            var content = content
            if file == "unet/config.json", var config = content.objectValue {
                for (key, value) in unet["config"]?.objectValue ?? [:] { config[key] = value }
                content = .object(config)
            }
            try directory.write(content.serialized, to: file)
        }
        for folder in ["tokenizer", "tokenizer_2"] where fixture["files"]?[folder + "/tokenizer_config.json"] != nil {
            for file in ["vocab.json", "merges.txt"] {
                try directory.link("\(folder)/\(file)", to: demoModelPath + "/tokenizer/" + file)
            }
        }
        for (component, list) in fixture["tensors"]?.objectValue ?? [:] {
            let others = component == "unet" ? unet["tensors"]?.arrayValue : component == "vae" ? vae.arrayValue : nil
            let names = Set((others ?? []).compactMap { $0["name"]?.stringValue })
            let own = (list.arrayValue ?? []).filter { !names.contains($0["name"]?.stringValue ?? "") }
            let descriptions = own + (others ?? [])
            let tensors = try Self.draw(descriptions)
            let shards = component == "unet" ? fixture["shards"]?.integerValue ?? 1 : 1
            try write(tensors, to: component, shards: shards, storage: storage)
        }
    }

    private func write(_ tensors: [SafetensorsTensor], to component: String, shards: Int, storage: Storage) throws {
        let base = component.hasPrefix("text_encoder") ? "model" : "diffusion_pytorch_model"
        guard shards > 1 else {
            try directory.write(safetensors(tensors, storage: storage), to: "\(component)/\(base).safetensors")
            return
        }
        var map: JSONObject = [:]
        for shard in 0..<shards {
            let file = "\(base)-0000\(shard + 1)-of-0000\(shards).safetensors"
            let part = tensors.enumerated().filter { $0.offset % shards == shard }.map(\.element)
            try directory.write(safetensors(part, storage: storage), to: "\(component)/\(file)")
            for tensor in part { map[tensor.name] = .string(file) }
        }
        let index = JSONValue.object(["metadata": .object([:]), "weight_map": .object(map)])
        try directory.write(index.serialized, to: "\(component)/\(base).safetensors.index.json")
    }

    /// Draws tensors, several at a time, from the descriptions of a fixture.
    package static func draw(_ descriptions: [JSONValue]) throws -> [SafetensorsTensor] {
        let drawn = Mutex<[Int: SafetensorsTensor]>([:])
        DispatchQueue.concurrentPerform(iterations: descriptions.count) { index in
            guard let tensor = draw(descriptions[index]) else { return }
            drawn.withLock { $0[index] = tensor }
        }
        return try drawn.withLock { tensors in
            try descriptions.indices.map { index in
                guard let tensor = tensors[index] else {
                    throw FixtureError(reason: "a tensor without name, shape, seed or deviation")
                }
                return tensor
            }
        }
    }

    private static func draw(_ description: JSONValue) -> SafetensorsTensor? {
        guard let name = description["name"]?.stringValue, let shape = description["shape"]?.integers,
            let seed = description["seed"]?.integerValue, let deviation = description["std"]?.doubleValue,
            let mean = description["mean"]?.doubleValue
        else { return nil }
        let count = shape.reduce(1, *)
        // Tables repeat after this many rows.
        let period = description["period"]?.integerValue ?? shape.first ?? 1
        let row = shape.dropFirst().reduce(1, *)
        var generator = TorchGenerator(seed: UInt64(seed))
        var values = generator.normals(min(count, period * row))
        let (scale, shift) = (Float(deviation), Float(mean))
        for index in values.indices { values[index] = values[index] * scale + shift }
        while values.count < count { values += values.prefix(min(period * row, count - values.count)) }
        return SafetensorsTensor(name: name, shape: shape, values: values)
    }
}

/// A tensor to be written.
package struct SafetensorsTensor: Sendable {
    package let name: String
    package let shape: [Int]
    package let values: [Float]

    /// A tensor from its parts.
    package init(name: String, shape: [Int], values: [Float]) {
        self.name = name
        self.shape = shape
        self.values = values
    }
}

/// The bytes of a safetensors file.
package func safetensors(
    _ tensors: [SafetensorsTensor],
    storage: RandomCheckpoint.Storage = .float32,
    metadata: [String: String] = [:]
) -> [UInt8] {
    let size = storage == .float32 ? 4 : 2
    var header: JSONObject = [:]
    if !metadata.isEmpty { header["__metadata__"] = .object(JSONObject(metadata.map { ($0.key, .string($0.value)) })) }
    var offset = 0
    for tensor in tensors {
        let end = offset + tensor.values.count * size
        header[tensor.name] = .object([
            "dtype": .string(storage == .float32 ? "F32" : "F16"), "shape": .array(tensor.shape.map { .init($0) }),
            "data_offsets": .array([.init(offset), .init(end)]),
        ])
        offset = end
    }
    let text = Array(JSONValue.object(header).serialized.utf8)
    // Padded so that the tensors are aligned.
    let length = (text.count + 7) / 8 * 8
    var bytes: [UInt8] = []
    bytes.reserveCapacity(8 + length + offset)
    withUnsafeBytes(of: UInt64(length).littleEndian) { bytes += $0 }
    bytes += text
    bytes += repeatElement(UInt8(ascii: " "), count: length - text.count)
    for tensor in tensors {
        switch storage {
        case .float32: tensor.values.withUnsafeBytes { bytes += $0 }
        case .float16: tensor.values.map { Float16($0) }.withUnsafeBytes { bytes += $0 }
        }
    }
    return bytes
}
