// `device.gemm: auto`: on GPUs both implementations are timed once per class of shapes, and the result is kept for the next start.

internal import Foundation
internal import Logging
internal import OpenCLRuntime

/// A class of linear layers, as a typical one.
package struct LinearShape: Sendable {
    let rows: Int
    let inChannels: Int
    let outChannels: Int

    /// A layer of `rows` rows.
    package init(rows: Int, inChannels: Int, outChannels: Int) {
        (self.rows, self.inChannels, self.outChannels) = (rows, inChannels, outChannels)
    }

    /// Those of a UNet, whose wide layers have few rows.
    package static let classes = [
        LinearShape(rows: 8192, inChannels: 320, outChannels: 320),
        LinearShape(rows: 2048, inChannels: 640, outChannels: 640),
        LinearShape(rows: 512, inChannels: 1280, outChannels: 1280),
    ]
}

extension TensorDevice {

    /// Computes all linear layers with one implementation.
    ///
    /// Takes effect for weights made afterwards.
    public func useGEMM(_ provider: GEMMProvider) {
        gemmProvider = { _, _ in provider }
        queue.logger.info("GEMM", metadata: ["provider": "\(provider.rawValue)", "reason": "configured"])
    }

    /// Chooses the implementation of linear layers.
    ///
    /// Takes effect for weights made afterwards.
    ///
    /// On processors CLBlast's kernels, made for GPUs, reach a tenth of the built-in tile (13-23 against 205-226 GFLOP/s on PoCL 3.1, 2 cores of a
    /// Zen 4), so nothing is measured there.
    /// - Parameter cacheDirectory: Where the measurement is kept; nil measures at every start.
    public func chooseGEMM(cacheDirectory: String?) throws {
        try chooseGEMM(cacheDirectory: cacheDirectory, among: LinearShape.classes)
    }

    /// The same, measured with other layers.
    package func chooseGEMM(cacheDirectory: String?, among shapeClasses: [LinearShape]) throws {
        if tuning.family == .cpu {
            gemmProvider = { _, _ in .builtin }
            queue.logger.info("GEMM", metadata: ["provider": "builtin", "reason": "the device is a processor"])
            return
        }
        if tuning.family == .nvidia {
            gemmProvider = { _, _ in .builtin }
            queue.logger.info("GEMM", metadata: ["provider": "builtin", "reason": "tensor cores"])
            return
        }
        let device = queue.device
        let key =
            "gemm v1 \(device.platformName) \(device.name) \(device.driverVersion) \(weightType) \(activationType)"
        let file = cacheDirectory.map { URL(fileURLWithPath: $0).appendingPathComponent("gemm.json") }
        var known =
            file.flatMap { try? JSONDecoder().decode([String: [String]].self, from: Data(contentsOf: $0)) } ?? [:]
        let choices: [GEMMProvider]
        if let kept = known[key]?.compactMap(GEMMProvider.init), kept.count == shapeClasses.count {
            choices = kept
        } else {
            choices = try shapeClasses.map { shape in
                let builtin = try secondsPerProduct(shape, .builtin)
                let clblast = try secondsPerProduct(shape, .clblast)
                queue.logger.info(
                    "GEMM measured",
                    metadata: [
                        "shape": "\(shape.rows)x\(shape.outChannels)x\(shape.inChannels)",
                        "builtin_ms": "\(builtin * 1000)", "clblast_ms": "\(clblast * 1000)",
                    ]
                )
                return builtin <= clblast ? .builtin : .clblast
            }
            known[key] = choices.map(\.rawValue)
            if let file {
                do {
                    try FileManager.default.createDirectory(
                        at: file.deletingLastPathComponent(),
                        withIntermediateDirectories: true
                    )
                    try JSONEncoder().encode(known).write(to: file, options: .atomic)
                } catch {
                    queue.logger.warning("the GEMM measurement could not be kept: \(error.localizedDescription)")
                }
            }
        }
        queue.logger.info(
            "GEMM",
            metadata: ["provider": "\(choices.map(\.rawValue).joined(separator: ", "))", "reason": "measured"]
        )
        gemmProvider = { inChannels, _ in
            let nearest = shapeClasses.indices.min {
                abs(shapeClasses[$0].inChannels - inChannels)
                    < abs(shapeClasses[$1].inChannels - inChannels)
            }
            return nearest.map { choices[$0] } ?? .builtin
        }
    }

    /// The median of five products after one that builds the kernels.
    private func secondsPerProduct(
        _ shape: LinearShape,
        _ provider: GEMMProvider
    ) throws -> Double {
        let before = gemmProvider
        gemmProvider = { _, _ in provider }
        defer { gemmProvider = before }
        let zeros = [UInt8](repeating: 0, count: shape.inChannels * shape.outChannels * 4)
        let weights = try zeros.withUnsafeBytes {
            try ConvolutionWeights(
                [WeightSource(bytes: $0, type: .float32, outChannels: shape.outChannels)],
                bias: nil,
                inChannels: shape.inChannels,
                isLinear: true,
                on: self
            )
        }
        let x = try tensor(
            [Float](repeating: 1, count: shape.rows * shape.inChannels),
            shape: [shape.rows, shape.inChannels]
        )
        var seconds: [Double] = []
        for _ in 0..<6 {
            let clock = ContinuousClock()
            let elapsed = try clock.measure {
                _ = try x.linear(weights)
                try queue.finish()
            }
            seconds.append(elapsed / .seconds(1))
        }
        return seconds.dropFirst().sorted()[2]
    }
}
