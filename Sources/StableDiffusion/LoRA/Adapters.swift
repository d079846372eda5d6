// Low-rank adapters of a loaded model (Hu et al. 2021): beside a layer's own weights W, which nothing ever changes, two thin matrices whose
// product is added, y = W x + up (down x). The model's layers list themselves here while they are loaded; a set of adapters is uploaded for the
// LoRAs of a request, and are in effect only within `AdapterList.with`.

internal import TensorOps

/// A part of a model that LoRAs change.
enum ModelPart: Hashable, Sendable {
    case unet
    /// The text encoder with a number, 0 or 1.
    case textEncoder(Int)
}

/// A module of a model by diffusers' name of it.
struct ModuleName: Hashable, Sendable {
    let part: ModelPart
    /// Such as `down_blocks.0.attentions.0.proj_in`.
    let path: String
}

/// What is added to a layer.
struct Adapter {
    /// `[R, C, k, k]`: the layer's input to the ranks of all that is added.
    let down: ConvolutionWeights
    /// `[O, R]`, with all scales in it.
    let up: ConvolutionWeights
}

/// The layers of a loaded model, and what is added to them at present.
final class AdapterList {
    /// One layer, or several whose outputs stand side by side.
    struct Layer {
        /// Modules in the order of their outputs.
        let modules: [ModuleName]
        /// Outputs of each module.
        let outChannels: Int
        let weights: ConvolutionWeights
    }

    private(set) var layers: [Layer] = []
    /// What is in effect; nil leaves the model as it was loaded.
    private(set) var active: AdapterSet?

    /// Runs `body` with a set in effect, and what was in effect before afterwards.
    func with<Result>(_ set: AdapterSet?, _ body: () throws -> Result) rethrows -> Result {
        let before = active
        active = set
        defer { active = before }
        return try body()
    }

    /// Adds a layer and returns its place.
    fileprivate func append(_ layer: Layer) -> Int {
        layers.append(layer)
        return layers.count - 1
    }
}

/// A layer's place in the list.
struct AdaptableLayer {
    fileprivate let list: AdapterList
    fileprivate let index: Int

    /// What is added to the layer at present.
    var adapter: Adapter? { list.active?.adapters[index] }
}

extension WeightLoader {
    /// Lists a layer made of the modules `names` below the loader; nil where LoRAs change nothing.
    func adaptable(names: [String], _ weights: ConvolutionWeights, outChannels: Int) -> AdaptableLayer? {
        guard let (list, part) = adaptation else { return nil }
        let modules = names.map { ModuleName(part: part, path: $0.isEmpty ? prefix : name($0)) }
        let index = list.append(.init(modules: modules, outChannels: outChannels, weights: weights))
        return AdaptableLayer(list: list, index: index)
    }
}

/// The uploaded adapters of some LoRAs with their weights.
final class AdapterSet {
    /// By the layer's place in the list.
    fileprivate let adapters: [Int: Adapter]

    /// Uploads what LoRAs add to a model's layers.
    ///
    /// Several that change the same layer become one adapter whose rank is the sum of theirs, and so do the parts of layers whose outputs stand
    /// side by side: each part's `up` is a block in its own rows.
    /// - Throws: `WeightsError` for matrices that are not finite; errors of the device.
    init(_ loras: [(lora: LoRA, weight: Double)], for list: AdapterList, on device: TensorDevice) throws {
        var adapters: [Int: Adapter] = [:]
        for (index, layer) in list.layers.enumerated() {
            var matrices: [(part: Int, pair: LoRA.Pair)] = []
            for (part, module) in layer.modules.enumerated() {
                for (lora, weight) in loras where weight != 0 {
                    guard let pair = try lora.pair(module, weight: weight) else { continue }
                    matrices.append((part, pair))
                }
            }
            if !matrices.isEmpty { adapters[index] = try Adapter(matrices, layer, on: device) }
        }
        self.adapters = adapters
        // Staging memory of the upload is of no further use.
        try device.finish()
    }
}

extension Adapter {
    /// Ranks are filled up with zeros to a multiple of this, so that kernels meet no shapes that models do not have.
    private static let rankMultiple = 8

    fileprivate init(_ matrices: [(part: Int, pair: LoRA.Pair)], _ layer: AdapterList.Layer, on device: TensorDevice)
        throws
    {
        let weights = layer.weights
        let (inChannels, kernelSize) = (weights.inChannels, weights.kernelSize)
        let ungated = weights.isGEGLU ? weights.ungated : weights
        let outputs = ungated.outChannels
        let total = matrices.reduce(0) { $0 + $1.pair.rank }
        let rank = (total + Self.rankMultiple - 1) / Self.rankMultiple * Self.rankMultiple
        let row = inChannels * kernelSize * kernelSize
        var down: [Float] = []
        down.reserveCapacity(rank * row)
        var up = [Float](repeating: 0, count: outputs * rank)
        var first = 0
        for (part, pair) in matrices {
            down += pair.down
            for output in 0..<layer.outChannels {
                let place = weights.isGEGLU ? weights.ungatedRow(output) : part * layer.outChannels + output
                for column in 0..<pair.rank { up[place * rank + first + column] = pair.up[output * pair.rank + column] }
            }
            first += pair.rank
        }
        down += repeatElement(0, count: rank * row - down.count)
        let isLinear = kernelSize == 1
        self.down = try down.withUnsafeBytes {
            try ConvolutionWeights(
                [WeightSource(bytes: $0, type: .float32, outChannels: rank)],
                bias: nil,
                inChannels: inChannels,
                kernelSize: kernelSize,
                isLinear: isLinear && weights.isLinear,
                on: device
            )
        }
        self.up = try up.withUnsafeBytes {
            try ConvolutionWeights(
                [WeightSource(bytes: $0, type: .float32, outChannels: outputs)],
                bias: nil,
                inChannels: rank,
                isLinear: isLinear && weights.isLinear,
                on: device
            )
        }
    }
}
