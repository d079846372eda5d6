// Weights: safetensors files whole and damaged, the ways folders hold them, and the names published files use. PyTorch's
// files: TorchFileTests.

import Foundation
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct CheckpointTests {
    private static func file(
        _ tensors: [(String, String, [Int], Int)],
        data: Int? = nil,
        metadata: String = ""
    ) -> [UInt8] {
        var offset = 0
        let entries = tensors.map { name, type, shape, bytes in
            defer { offset += bytes }
            return
                "\"\(name)\":{\"dtype\":\"\(type)\",\"shape\":\(shape),\"data_offsets\":[\(offset),\(offset + bytes)]}"
        }
        let header = Array(("{" + metadata + entries.joined(separator: ",") + "}").utf8)
        return littleEndian(UInt64(header.count)) + header + [UInt8](repeating: 0, count: data ?? offset)
    }

    private static func raw(_ header: String, data: Int = 16) -> [UInt8] {
        littleEndian(UInt64(header.utf8.count)) + Array(header.utf8) + [UInt8](repeating: 0, count: data)
    }

    private static func littleEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { Array($0) }
    }

    private func open(_ bytes: [UInt8]) throws -> Checkpoint {
        let directory = try TemporaryDirectory()
        // A mapping outlives the file's name.
        return try Checkpoint(directory: directory.path, paths: [directory.write(bytes, to: "model.safetensors")])
    }

    // MARK: - Reading

    @Test func everyWeightOfTheDemoModelIsReadable() throws {
        for component in ["unet", "vae", "text_encoder"] {
            let checkpoint = try Checkpoint(directory: demoModelPath + "/" + component)
            #expect(!checkpoint.names.isEmpty)
            #expect(checkpoint.byteCount > 100_000)
            for name in checkpoint.names {
                let shape = try #require(checkpoint.files[0].entries[name]).shape
                let values = try checkpoint.floats(named: name, shape: shape)
                #expect(values.count == shape.reduce(1, *))
                #expect(values.allSatisfy { $0.isFinite })
            }
        }
    }

    @Test func readTensorsDoNotStayResident() throws {
        let count = 2 << 20
        let bytes = Self.file([("x", "F32", [count], 4 * count), ("y", "F32", [1], 4)], data: 0)
        let values = (0...count).map(Float.init)
        let directory = try TemporaryDirectory()
        let path = try directory.write(
            bytes + values.withUnsafeBytes(Array.init),
            to: "model.safetensors"
        )
        let checkpoint = try Checkpoint(directory: directory.path, paths: [path])
        for _ in 0..<2 {
            // The second time its pages come back.
            #expect(try checkpoint.floats(named: "x", shape: [count]) == values.dropLast())
            // The system says that this file has no bytes, so it is read to its end.
            let handle = try #require(FileHandle(forReadingAtPath: "/proc/self/smaps"))
            let map = String(decoding: try handle.readToEnd() ?? Data(), as: UTF8.self)
            let name = path.split(separator: "/").suffix(2).joined(separator: "/")
            let lines = map.split(separator: "\n").drop { !$0.hasSuffix(name) }
            let resident = try #require(lines.first { $0.hasPrefix("Rss:") })
            let kibibytes = try #require(resident.split(separator: " ").dropFirst().first.flatMap { Int($0) })
            #expect(kibibytes < 300, "of 8192; the pages at the ends are shared with neighbours")
        }
        #expect(try checkpoint.floats(named: "y", shape: [1]) == [Float(count)])
    }

    @Test func everyFiniteHalfBecomesItsFloat() throws {
        let halves = (0...UInt16.max).filter { $0 & 0x7C00 != 0x7C00 }
        var bytes = Self.file([("x", "F16", [halves.count], halves.count * 2)], data: 0)
        bytes += halves.flatMap(Self.littleEndian)
        let values = try open(bytes).floats(named: "x", shape: [halves.count])
        #expect(values.map(\.bitPattern) == halves.map { Float(Float16(bitPattern: $0)).bitPattern })
    }

    @Test func brainFloatsAndFloatsKeepTheirBits() throws {
        let bits: [UInt16] = [0, 0x8000, 0x3F80, 0xC2F7, 0x0001, 0x7F7F]
        let floats: [Float] = [1, -2.5, .leastNonzeroMagnitude, .greatestFiniteMagnitude]
        // An odd-sized tensor in front leaves the others without alignment.
        var bytes = Self.file([("pad", "U8", [3], 3), ("b", "BF16", [6], 12), ("f", "F32", [2, 2], 16)], data: 3)
        bytes += bits.flatMap(Self.littleEndian) + floats.map(\.bitPattern).flatMap(Self.littleEndian)
        let checkpoint = try open(bytes)
        #expect(try checkpoint.floats(named: "b", shape: [6]).map(\.bitPattern) == bits.map { UInt32($0) << 16 })
        #expect(try checkpoint.floats(named: "f", shape: [2, 2]) == floats)
        var output = [Float](repeating: 0, count: 4)
        try output.withUnsafeMutableBufferPointer { try checkpoint.read(named: "f", shape: [2, 2], into: $0) }
        #expect(output == floats)
    }

    @Test(arguments: [
        ("F32", UInt32(0x7F80_0000), 4), ("F32", 0xFFC0_0000, 4), ("F16", 0x7C00, 2), ("F16", 0xFE00, 2),
        ("BF16", 0x7F80, 2), ("BF16", 0xFFFF, 2),
    ])
    func namesTheFirstWeightThatIsNotFinite(type: String, bits: UInt32, size: Int) throws {
        // Places in the middle of a block, in a later block, and in the last, incomplete word.
        let count = 40_003
        for index in [0, 1, 4097, 39_999, count - 1] {
            var bytes = Self.file([("a.weight", type, [count], count * size)])
            let start = bytes.count - count * size
            for position in [index, count - 1] {
                for byte in 0..<size { bytes[start + position * size + byte] = UInt8(bits >> (8 * byte) & 0xFF) }
            }
            let checkpoint = try open(bytes)
            let error = try #require(throws: WeightsError.self) {
                try checkpoint.floats(named: "a.weight", shape: [count])
            }
            let file = checkpoint.files[0].path
            #expect(error == .nonFinite(name: "a.weight", index: index, file: file))
            #expect(error.description.contains("a.weight") && error.description.contains(file))
        }
    }

    /// Lengths of headers whose bytes are the first ones of an archive and of pickles.
    @Test(arguments: [0x4B50, 0x0280, 0x0480])
    func headersOfAnyLengthAreRead(length: Int) throws {
        let entry = "{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"
        let header = entry + String(repeating: " ", count: length - entry.utf8.count)
        #expect(try open(Self.raw(header, data: 4)).floats(named: "w", shape: [1]) == [0])
    }

    @Test func tensorsThatAreNoWeightsAreToleratedButNotRead() throws {
        let checkpoint = try open(
            Self.file(
                [
                    ("ids", "I64", [1, 77], 616), ("fp8", "F8_E4M3", [4], 4), ("d", "F64", [1], 8),
                    ("w", "F32", [1], 4),
                ],
                metadata: "\"__metadata__\":{\"format\":\"pt\"},"
            )
        )
        #expect(try checkpoint.floats(named: "w", shape: [1]) == [0])
        for (name, shape) in [("ids", [1, 77]), ("fp8", [4]), ("d", [1])] {
            let error = try #require(throws: WeightsError.self) { try checkpoint.floats(named: name, shape: shape) }
            guard case .unsupportedType(name, _, _) = error else {
                Issue.record("\(error)")
                continue
            }
        }
    }

    @Test func missingAndMisshapenWeightsAreNamed() throws {
        let checkpoint = try open(Self.file([("conv.weight", "F16", [4, 2, 3, 3], 144)]))
        let missing = try #require(throws: WeightsError.self) {
            try WeightLoader(checkpoint).at("mid.attentions").at("0").floats("to_q.weight", [2, 2])
        }
        #expect(missing.description.contains("\"mid.attentions.0.to_q.weight\""))
        #expect(missing.description.contains("mid.attentions.0.query.weight"))
        for shape in [[4, 2, 3], [2, 4, 3, 3], [72], [], [4, 2, 3, 3, 2]] {
            let error = try #require(throws: WeightsError.self) {
                try checkpoint.floats(named: "conv.weight", shape: shape)
            }
            let file = checkpoint.files[0].path
            #expect(error == .shapeMismatch(name: "conv.weight", expected: shape, found: [4, 2, 3, 3], file: file))
        }
    }

    // MARK: - Names

    @Test(arguments: [
        ("text_model.encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight"),
        ("encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
        ("text_model.final_layer_norm.bias", "final_layer_norm.bias"),
        ("decoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("decoder.mid_block.attentions.0.key.bias", "decoder.mid_block.attentions.0.to_k.bias"),
        ("decoder.mid_block.attentions.0.value.weight", "decoder.mid_block.attentions.0.to_v.weight"),
        ("decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
    ])
    func weightsAreFoundByTheirOtherNames(stored: String, asked: String) throws {
        let checkpoint = try open(Self.file([(stored, "F32", [2], 8)]))
        #expect(try checkpoint.floats(named: asked, shape: [2]) == [0, 0])
        #expect(checkpoint.contains(asked))
        #expect(!checkpoint.contains(asked + "x"))
    }

    @Test(arguments: [
        ([8, 4, 1, 1], [8, 4]), ([8, 4], [8, 4, 1, 1]), ([8, 4, 1], [8, 4]), ([1, 1], [1, 1, 1, 1]),
    ])
    func pointwiseConvolutionsAndLinearLayersAreTheSame(stored: [Int], asked: [Int]) throws {
        let bytes = 4 * stored.reduce(1, *)
        let checkpoint = try open(Self.file([("w", "F32", stored, bytes)]))
        #expect(try checkpoint.floats(named: "w", shape: asked).count == bytes / 4)
    }

    // MARK: - Folders

    @Test(arguments: [
        "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
        "model.fp16.safetensors",
    ])
    func singleFilesAreFound(name: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(Self.file([("w", "F32", [1], 4)]), to: name)
        #expect(try Checkpoint(directory: directory.path).names == ["w"])
    }

    @Test(arguments: [
        "diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.fp16.bin",
        "pytorch_model.fp16.bin",
    ])
    func pickledFilesAreFoundWhereThereIsNoOther(name: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(torchFile([SafetensorsTensor(name: "b", shape: [1], values: [2])]), to: name)
        #expect(try Checkpoint(directory: directory.path).floats(named: "b", shape: [1]) == [2])
        try directory.write(Self.file([("w", "F32", [1], 4)]), to: "model.fp16.safetensors")
        #expect(try Checkpoint(directory: directory.path).names == ["w"])
    }

    @Test(arguments: ["diffusion_pytorch_model.bin.index.json", "pytorch_model.bin.index.json"])
    func pickledShardsAreFound(index: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(torchFile([SafetensorsTensor(name: "a", shape: [1], values: [1])]), to: "x-1.bin")
        try directory.write(torchFile([SafetensorsTensor(name: "b", shape: [1], values: [2])]), to: "x-2.bin")
        try directory.write(#"{"weight_map": {"a": "x-1.bin", "b": "x-2.bin"}}"#, to: index)
        #expect(try Checkpoint(directory: directory.path).names == ["a", "b"])
        try directory.write(#"{"weight_map": {"a": "x-1.safetensors"}}"#, to: index)
        #expect(throws: WeightsError.self) { try Checkpoint(directory: directory.path) }
    }

    @Test(arguments: [
        "diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json",
    ])
    func shardsAreFound(index: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(Self.file([("a", "F32", [1], 4)]), to: "x-1.safetensors")
        try directory.write(Self.file([("b", "F32", [2], 8)]), to: "x-2.safetensors")
        try directory.write(#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#, to: index)
        let checkpoint = try Checkpoint(directory: directory.path)
        #expect(checkpoint.names == ["a", "b"])
        #expect(try checkpoint.floats(named: "b", shape: [2]) == [0, 0])
    }

    @Test(arguments: [
        (#"{"weight_map": {"a": "x-1.safetensors", "b": "x-9.safetensors"}}"#, "x-9.safetensors"),
        (#"{"weight_map": {"a": "../x-1.safetensors"}}"#, "../x-1.safetensors"),
        (#"{"weight_map": {"a": "/etc/passwd"}}"#, "/etc/passwd"), (#"{"weight_map": {"a": 1}}"#, "\"a\""),
        (#"{"weight_map": {}}"#, "weight_map"), ("[", "JSON"),
        (#"{"weight_map": {"a": "x-1.safetensors", "b": "x-1b.safetensors"}}"#, "is also in"),
    ])
    func brokenIndexesAreNamed(index: String, reason: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(Self.file([("a", "F32", [1], 4)]), to: "x-1.safetensors")
        try directory.write(Self.file([("a", "F32", [1], 4)]), to: "x-1b.safetensors")
        try directory.write(index, to: "model.safetensors.index.json")
        let error = try #require(throws: WeightsError.self) { try Checkpoint(directory: directory.path) }
        #expect(error.description.contains(reason) && error.description.contains(directory.path), "\(error)")
    }

    @Test(arguments: [
        ("other.bin", "other.bin"), ("other.safetensors", "other.safetensors"),
        ("README.md", "there is no"),
    ])
    func foldersWithoutWeightsSayWhatToDo(file: String, reason: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write("x", to: file)
        let error = try #require(throws: WeightsError.self) { try Checkpoint(directory: directory.path) }
        #expect(error.description.contains(reason) && error.description.contains(directory.path), "\(error)")
        #expect(throws: WeightsError.self) { try Checkpoint(directory: directory.path + "/nowhere") }
    }

    @Test func aLinkToNothingIsNamed() throws {
        let directory = try TemporaryDirectory()
        try directory.link("model.safetensors", to: "nowhere")
        let error = try #require(throws: WeightsError.self) { try Checkpoint(directory: directory.path) }
        #expect(error.description.contains("model.safetensors: it is a link to a file that is not there"), "\(error)")
    }

    // MARK: - Damage

    @Test(
        arguments: [
            ([], "empty"), ([1, 2, 3], "truncated"),
            (Array("version https://git-lfs.github.com/spec/v1\n".utf8), "Git LFS"),
            (littleEndian(UInt64.max), "header of"), (littleEndian(UInt64(100)) + [0x7B], "truncated"),
            (raw("{"), "JSON"), (raw("[]"), "JSON object"), (raw("{\"a\": 1}"), "dtype"),
            (raw("{\"a\": {\"dtype\": \"F32\"}}"), "shape"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [4]}}"), "data_offsets"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [16, 0]}}"), "data_offsets"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [-16, 0]}}"), "data_offsets"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [-4], \"data_offsets\": [0, 16]}}"), "dimension"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [5], \"data_offsets\": [0, 16]}}"), "does not fit"),
            (
                raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 16]}}"),
                "memory"
            ),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904], \"data_offsets\": [0, 16]}}"), "fit"),
            (raw("{\"a\": {\"dtype\": \"U4\", \"shape\": [1], \"data_offsets\": [0, 9223372036854775807]}}"), "larger"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [8], \"data_offsets\": [0, 32]}}"), "truncated"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}"), "belong to none"),
            (raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 16]}}"), "gap"),
            (
                raw(
                    "{\"a\": {\"dtype\": \"F32\", \"shape\": [3], \"data_offsets\": [0, 12]},"
                        + "\"b\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 16]}}"
                ), "overlaps"
            ),
        ] as [([UInt8], String)]
    )
    func damagedFilesAreNamed(bytes: [UInt8], reason: String) throws {
        let directory = try TemporaryDirectory()
        let path = try directory.write(bytes, to: "model.safetensors")
        let error = try #require(throws: WeightsError.self) { try WeightFile(path: path) }
        #expect(error.description.contains(reason) && error.description.contains(path), "\(error)")
    }

    @Test func pathsThatAreNoFilesAreNamed() throws {
        let directory = try TemporaryDirectory()
        for path in [directory.path, directory.path + "/nothing", "/dev/null", "a\u{0}b"] {
            let error = try #require(throws: WeightsError.self) { try WeightFile(path: path) }
            #expect(error.description.hasPrefix(path), "\(error)")
        }
    }

    /// A small valid file with everything a header can have.
    private static let sample = file(
        [("a.weight", "F16", [2, 3], 12), ("b", "F32", [2], 8), ("ids", "I64", [1], 8), ("s", "BF16", [], 2)],
        metadata: "\"__metadata__\":{\"format\":\"pt\"},"
    )

    @Test func everyTruncationIsAnError() throws {
        let directory = try TemporaryDirectory()
        for count in 0..<Self.sample.count {
            let path = try directory.write(Array(Self.sample.prefix(count)), to: "x.safetensors")
            #expect(throws: WeightsError.self, "\(count) bytes") { try WeightFile(path: path) }
        }
        #expect(try open(Self.sample).names.count == 4)
    }

    /// Whatever a damaged header says, it is an error or every tensor lies within the file.
    @Test func randomDamageNeverLeadsOutsideTheFile() throws {
        let directory = try TemporaryDirectory()
        var generator = TorchGenerator(seed: 3)
        let header = Self.sample.count - 30
        var accepted = 0
        for round in 0..<4000 {
            var bytes = Self.sample
            for _ in 0...(round % 3) {
                let position = Int(generator.word()) % header
                // A flipped bit, or another digit in place of one, which is more often still JSON.
                if 0x30...0x39 ~= bytes[position] {
                    bytes[position] = 0x30 + UInt8(generator.word() % 10)
                } else {
                    bytes[position] ^= 1 << UInt8(generator.word() % 8)
                }
            }
            let path = try directory.write(bytes, to: "x.safetensors")
            do throws(WeightsError) {
                let file = try WeightFile(path: path)
                accepted += 1
                for entry in file.entries.values {
                    #expect(entry.range.lowerBound >= 8 && entry.range.upperBound <= bytes.count)
                    try? file.withBytes(of: entry) { #expect($0.count == entry.range.count) }
                }
            } catch {
                #expect(error.description.hasPrefix(path))
            }
        }
        // Names and metadata may change freely, so some files stay valid, and most do not.
        #expect(accepted > 100 && accepted < 3000)
    }

    @Test func threadsReadTogether() async throws {
        let checkpoint = try Checkpoint(directory: demoModelPath + "/vae")
        let names = checkpoint.names
        let expected = try names.map { try checkpoint.floats(named: $0, shape: shape($0, checkpoint)) }
        await withTaskGroup(of: Bool.self) { group in
            for (name, values) in zip(names, expected) {
                group.addTask {
                    (try? checkpoint.floats(named: name, shape: self.shape(name, checkpoint))) == values
                }
            }
            for await isEqual in group { #expect(isEqual) }
        }
    }

    private func shape(_ name: String, _ checkpoint: Checkpoint) -> [Int] {
        checkpoint.files.compactMap { $0.entries[name]?.shape }.first ?? []
    }
}
