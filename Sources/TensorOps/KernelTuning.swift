// Which form of each kernel a device runs, and every tile and work-group size. Numbers for local sizes stand here and nowhere else.

public import OpenCLRuntime

/// The forms a kernel exists in.
public enum KernelFamily: String, CaseIterable, Sendable {
    /// One work-item an output element; obviously right, slow everywhere.
    case plain
    /// A work-item is a register tile of explicit vectors; no local memory. For processors.
    case cpu
    /// A work-group tile in local memory. For GPUs.
    case gpu
}

/// Tiles and work-group sizes for one device class.
public struct KernelTuning: Sendable, Equatable {
    /// The form of the kernels.
    public var family: KernelFamily
    /// VEC: floats in an explicit vector (CPU family).
    public var vectorWidth: Int
    /// ROWS: pixels or queries in a register tile (CPU family).
    public var tileRows: Int
    /// BLOCK: register tiles whose pixels stay in the cache while the panels of weights pass (CPU family).
    public var convolutionBlock: Int
    /// PANEL: output channels in a panel of packed weights.
    public var panelWidth: Int
    /// KEYS: keys in a block of attention (CPU family).
    public var attentionKeys: Int
    /// TILES: register tiles of queries that share a block of keys in the cache (CPU family).
    public var attentionTiles: Int
    /// MAX_D: largest head the CPU attention holds in private memory; larger ones take the plain kernel.
    public var maxHeadSize: Int
    /// CHUNK: pixels or rows of a normalisation work-item (CPU family).
    public var normChunk: Int
    /// WG: work-items of a normalisation work-group (GPU family).
    public var normWorkGroup: Int
    /// Work-items of a work-group in elementwise kernels.
    public var elementwiseWorkGroup: Int
    /// Local memory a work-group may take, in bytes (GPU family).
    public var localMemoryBytes: Int
    /// Output tiles of 4 x 4 pixels from which on 3x3 convolutions take Winograd's way; nil for never (CPU family).
    ///
    /// Below it the transformed weights, four times as large, cost more than the multiplications they save.
    public var winogradTiles: Int?
    /// Memory of a strip of transformed tiles, in bytes: it is to stay in the last-level cache.
    public var winogradStripBytes: Int

    /// The tuning for a device, in the family that suits its kind or in a given one.
    ///
    /// The CPU tile is chosen so that accumulators, two weight vectors and a broadcast fit the vector registers: 12 x 2 of 32 with
    /// AVX-512, 6 x 2 of 16 with AVX2, 4 x 2 otherwise.
    ///
    /// - Parameter vectorWidth: 4, 8 or 16 floats instead of what the device calls native.
    public static func forDevice(
        _ device: Device,
        family: KernelFamily? = nil,
        vectorWidth: Int? = nil
    ) -> KernelTuning {
        let family = family ?? (device.kind == .cpu ? .cpu : .gpu)
        let native = device.nativeFloatVectorWidth
        let width = vectorWidth ?? (native >= 16 ? 16 : native >= 8 ? 8 : 4)
        let panelWidth =
            switch family {
            case .plain: 8
            case .cpu: 2 * width
            case .gpu: 64
            }
        return KernelTuning(
            family: family,
            vectorWidth: width,
            tileRows: width == 16 ? 12 : width == 8 ? 6 : 4,
            convolutionBlock: 32,
            panelWidth: panelWidth,
            attentionKeys: 128,
            attentionTiles: 4,
            maxHeadSize: 512,
            normChunk: 64,
            normWorkGroup: min(256, 1 << (Int.bitWidth - 1 - max(device.maxWorkGroupSize, 1).leadingZeroBitCount)),
            elementwiseWorkGroup: min(64, max(device.maxWorkGroupSize, 1)),
            localMemoryBytes: device.localMemoryBytes,
            winogradTiles: family == .cpu ? 64 : nil,
            winogradStripBytes: 12 << 20
        )
    }

    /// QUERIES and KEYS of `attention_gpu` for heads of a given size: the largest tile that fits the local memory; nil if none does.
    public func attentionTile(headSize: Int) -> (queries: Int, keys: Int)? {
        // (QUERIES + 2 KEYS)(D + 1) + QUERIES KEYS floats
        [(16, 32), (16, 16), (16, 8), (8, 8), (4, 8)].first { queries, keys in
            ((queries + 2 * keys) * (headSize + 1) + queries * keys) * 4 <= localMemoryBytes
        }
    }
}
