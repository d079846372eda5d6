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
    /// The GPU family with convolutions, linear layers and attention on tensor cores, in float16. For NVIDIA GPUs.
    case nvidia
}

/// How the kernels of `Kernels/*_mma.cl` multiply.
public enum TensorCores: Sendable {
    /// By the instruction mma.sync.
    case instructions
    /// By sub-group shuffles, so that their indexing is tested without a GPU.
    case emulated

    /// The macro of `Kernels/mma.clh` that says so.
    var macro: String { self == .instructions ? "MMA_PTX" : "MMA_EMULATE" }
}

/// The tile of a work-group of `convolution_mma`, and how many work-groups share the sums of one.
public struct MatrixTile: Sendable, Hashable {
    /// TILE_M: pixels.
    public let rows: Int
    /// TILE_N: output channels.
    public let columns: Int
    /// WARP_M: pixels of one of its warps.
    public let warpRows: Int
    /// WARP_N: its output channels.
    public let warpColumns: Int
    /// Work-groups that the registers of a compute unit hold at once.
    let residents: Int
    /// Work-groups that each sum a part of the steps; their sums are added by a second kernel.
    public var splits = 1

    /// The tiles there are.
    public static let all = [
        MatrixTile(rows: 128, columns: 128, warpRows: 64, warpColumns: 64, residents: 2),
        MatrixTile(rows: 128, columns: 64, warpRows: 64, warpColumns: 32, residents: 2),
        MatrixTile(rows: 64, columns: 64, warpRows: 32, warpColumns: 32, residents: 4),
        // Divides the UNet's channels, multiples of 320, and fills more of a compute unit alone.
        MatrixTile(rows: 128, columns: 160, warpRows: 64, warpColumns: 32, residents: 1),
    ]

    /// Warps of a work-group.
    public var warps: Int { rows / warpRows * (columns / warpColumns) }

    /// Bytes that a compute unit's cache and local memory, which are one, move for one mma.sync: the tiles in and out, and what the warps read of
    /// them, over the number of instructions.
    var localBytesPerProduct: Double {
        let brought = (rows + columns) * 64
        let read = warps * (warpRows + warpColumns) * 64
        return Double(2 * brought + read) / Double(rows * columns / 64)
    }
}

/// Tiles and work-group sizes for one device class.
public struct KernelTuning: Sendable, Equatable {
    /// The form of the kernels.
    public var family: KernelFamily
    /// VEC: floats in an explicit vector (CPU family).
    public var vectorWidth: Int
    /// ROWS: pixels or queries in a register tile (CPU family).
    public var tileRows: Int
    /// The most register tiles a work-item makes, whose pixels stay in the cache while the panels of weights pass (CPU family).
    public var maxConvolutionBlock: Int
    /// Work-items from which on the compute units are evenly busy (CPU family).
    public var leastWorkItems: Int
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
    /// WG: work-items of a normalisation work-group, a power of two (GPU family).
    public var normWorkGroup: Int
    /// TEAM: work-items that share a row of layer normalisation, a power of two (GPU family).
    public var normTeam: Int
    /// Work-items of a work-group in elementwise kernels.
    public var elementwiseWorkGroup: Int
    /// Weights that a work-item packs (CPU family): enough that handing out work-groups does not show.
    public var packedElements: Int
    /// Local memory a work-group may take, in bytes (GPU family).
    public var localMemoryBytes: Int
    /// Compute units: how many work-groups run side by side (GPU families).
    public var computeUnits: Int
    /// How products are computed (NVIDIA family).
    public var tensorCores: TensorCores
    /// Rows of a linear layer up to which reading its weights is all that counts (NVIDIA family).
    public var fewRows: Int
    /// The tile of all convolutions; nil chooses by shape (NVIDIA family).
    public var matrixTile: MatrixTile?
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
    /// - Parameters:
    ///   - vectorWidth: 4, 8 or 16 floats instead of what the device calls native.
    ///   - precision: Storage of weights; the NVIDIA family is for float16.
    public static func forDevice(
        _ device: Device,
        precision: ElementType = .float32,
        family: KernelFamily? = nil,
        vectorWidth: Int? = nil
    ) -> KernelTuning {
        let hasTensorCores = device.computeCapability.map { $0 >= leastComputeCapability } ?? false
        let family =
            family ?? (device.kind == .cpu ? .cpu : hasTensorCores && precision == .float16 ? .nvidia : .gpu)
        let native = device.nativeFloatVectorWidth
        let width = vectorWidth ?? (native >= 16 ? 16 : native >= 8 ? 8 : 4)
        let panelWidth =
            switch family {
            case .plain: 8
            case .cpu: 2 * width
            case .gpu, .nvidia: 64
            }
        return KernelTuning(
            family: family,
            vectorWidth: width,
            tileRows: width == 16 ? 12 : width == 8 ? 6 : 4,
            maxConvolutionBlock: 32,
            leastWorkItems: 16 * device.computeUnits,
            panelWidth: panelWidth,
            attentionKeys: 128,
            attentionTiles: 4,
            maxHeadSize: 512,
            normChunk: 64,
            normWorkGroup: min(256, 1 << (Int.bitWidth - 1 - max(device.maxWorkGroupSize, 1).leadingZeroBitCount)),
            normTeam: 32,
            elementwiseWorkGroup: min(64, max(device.maxWorkGroupSize, 1)),
            packedElements: 16 << 10,
            localMemoryBytes: device.localMemoryBytes,
            computeUnits: max(device.computeUnits, 1),
            tensorCores: hasTensorCores ? .instructions : .emulated,
            fewRows: 16,
            matrixTile: nil,
            winogradTiles: family == .cpu ? 64 : nil,
            winogradStripBytes: 12 << 20
        )
    }

    /// PIECE: neighbouring channels that a work-item of normalisation reads at once, at most 16 bytes (GPU family).
    public func normPiece(channels: Int, elementBytes: Int) -> Int {
        var piece = 16 / elementBytes
        while channels % piece != 0 { piece /= 2 }
        return piece
    }

    /// What a work-group of group normalisation has (GPU family): SLAB groups, read in pieces of PIECE channels, `rows` pixels side by side.
    ///
    /// Neighbouring groups, as one has as few as 4 channels, 8 bytes of a pixel: 64 channels fill the cache's lines.
    public func normSlab(channels: Int, groups: Int, elementBytes: Int) -> (groups: Int, piece: Int, rows: Int) {
        let width = channels / groups
        let piece = normPiece(channels: channels, elementBytes: elementBytes)
        let slab = (1...groups).first { $0 * width % piece == 0 && $0 * width >= 64 } ?? groups
        guard slab == 1 || max(slab, slab * width / piece) <= normWorkGroup else {
            // Only where a device's work-groups are small.
            return (1, 1, max(normWorkGroup / width, 1))
        }
        return (slab, piece, max(normWorkGroup * piece / (slab * width), 1))
    }

    /// PIXELS: pixels of a work-group of group normalisation, when there are `slabs` of them in all pictures (GPU family).
    ///
    /// So many work-groups that all compute units are busy, but each with pixels enough to be worth its start.
    public func normChunkPixels(pixels: Int, slabs: Int, rows: Int) -> Int {
        let wanted = (max(8 * computeUnits, 64) + slabs - 1) / slabs
        let chunks = min(wanted, max(pixels / (8 * rows), 1))
        return (pixels + chunks - 1) / chunks
    }

    /// The first generation with mma.sync.m16n8k16 on halves.
    public static let leastComputeCapability = ComputeCapability(major: 8, minor: 0)

    /// The tile of `convolution_mma` for `rows` pixels, `columns` packed output channels and sums of `steps` steps: the one whose estimated
    /// time is least.
    ///
    /// A compute unit moves 128 bytes of local memory a clock, which bounds the products of a tile (`doc/kernels.md`, Tensor cores); an H100
    /// takes about 1.45 times as long for all of them. What decides is mostly how evenly the tiles fill the compute units: small pictures
    /// take smaller tiles, or several work-groups for the sums of one, whose cost is a second kernel and its traffic, about 12 bytes a clock
    /// and compute unit.
    public func matrixTile(rows: Int, columns: Int, steps: Int) -> MatrixTile {
        if let matrixTile { return matrixTile }
        var best: (tile: MatrixTile, clocks: Double)?
        for shape in MatrixTile.all {
            let groups = (rows + shape.rows - 1) / shape.rows * ((columns + shape.columns - 1) / shape.columns)
            for splits in 1...8 where splits == 1 || steps / splits >= 8 {
                let perUnit = (groups * splits + computeUnits - 1) / computeUnits
                let products = (steps + splits - 1) / splits * shape.rows * shape.columns / 64
                // Where fewer than eight warps are together, they do not hide the latency of their loads.
                let time = { (together: Int) in Double(together) * (together * shape.warps < 8 ? 1.6 : 1) }
                let turns = Double(perUnit / shape.residents) * time(shape.residents) + time(perUnit % shape.residents)
                var clocks = turns * Double(products) * shape.localBytesPerProduct / 128
                if splits > 1 { clocks += Double(rows * columns * splits * 8 / (12 * computeUnits)) + 4500 }
                if best.map({ clocks < $0.clocks }) ?? true {
                    var tile = shape
                    tile.splits = splits
                    best = (tile, clocks)
                }
            }
        }
        return best?.tile ?? MatrixTile.all[0]
    }

    /// M_TILES of `attention_mma` for heads of a given size, limited by registers; nil if there is no such kernel for it.
    public func attentionQueryTiles(headSize: Int) -> Int? {
        switch headSize {
        case 40, 64, 80: 2
        case 160, 512: 1
        default: nil
        }
    }

    /// BLOCK of `convolution_cpu`: register tiles of a work-item when there are `tiles` in all.
    ///
    /// Many, as a work-group costs a processor about as much as a tile of few channels; but not so many that there is no work for all.
    public func convolutionBlock(tiles: Int) -> Int {
        min(max(tiles / leastWorkItems, 1), maxConvolutionBlock)
    }

    /// QUERIES and KEYS of `attention_gpu` for heads of a given size: the largest tile that fits the local memory; nil if none does.
    public func attentionTile(headSize: Int) -> (queries: Int, keys: Int)? {
        // (QUERIES + 2 KEYS)(D + 1) + QUERIES KEYS floats
        [(16, 32), (16, 16), (16, 8), (8, 8), (4, 8)].first { queries, keys in
            ((queries + 2 * keys) * (headSize + 1) + queries * keys) * 4 <= localMemoryBytes
        }
    }
}
