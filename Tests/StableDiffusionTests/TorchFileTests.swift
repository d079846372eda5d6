// PyTorch's files: those it wrote, those somebody damaged, and those somebody made to run a program of theirs.

import Foundation
import JSON
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct TorchFileTests {
    private func contents(_ bytes: [UInt8]) throws -> WeightFile.Contents {
        try bytes.withUnsafeBytes { try WeightFile.contents(of: $0, path: "x.ckpt") }
    }

    /// An archive around a pickle, with one storage of two floats.
    private func archive(_ pickle: [UInt8]) -> [UInt8] {
        var archive = ZipWriter()
        archive.add("x/data.pkl", pickle)
        archive.add("x/data/0", [UInt8](repeating: 0, count: 8))
        return archive.finished()
    }

    private func error(_ bytes: [UInt8]) throws -> WeightsError {
        try #require(throws: WeightsError.self) { try self.contents(bytes) }
    }

    // MARK: - What PyTorch wrote

    private static let types = [
        "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "bool": "BOOL",
    ]

    private static let sizes = [
        "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8,
        "C128": 16,
    ]

    @Test(arguments: [2, 3, 4, 5])
    func everyTensorOfEveryProtocolIsRead(version: Int) throws {
        let path = Fixture.directory + "/torch/protocol-\(version).bin"
        let checkpoint = try Checkpoint(directory: "x", paths: [path])
        let expected = try #require(try Fixture.json("torch/contents.json")["protocols"]?.objectValue)
        #expect(checkpoint.names == expected.map(\.name).sorted())
        for (name, tensor) in expected {
            let shape = try #require(tensor["shape"]).integers
            let type = try #require(tensor["type"]?.stringValue)
            let entry = try #require(checkpoint.files[0].entries[name])
            #expect(entry.shape == shape && entry.typeName == Self.types[type], "\(name)")
            if ["float64", "int64", "bool"].contains(type) || name == "expanded" {
                #expect(throws: WeightsError.self, "\(name)") { try checkpoint.floats(named: name, shape: shape) }
            } else {
                #expect(try checkpoint.floats(named: name, shape: shape) == tensor["values"]?.floats, "\(name)")
            }
        }
        #expect(checkpoint.files[0].format == .pyTorch)
        // Of the views, those that are not in the order of their shape, and no other.
        let strided = checkpoint.names.filter { checkpoint.files[0].entries[$0]?.strides != nil }
        #expect(strided == ["channels_last", "columns", "every_other", "expanded", "permuted", "transposed"])
    }

    @Test func theWeightsOfATrainingAreFound() throws {
        let path = Fixture.directory + "/torch/training.ckpt"
        let checkpoint = try Checkpoint(directory: "x", paths: [path])
        let expected = try #require(try Fixture.json("torch/contents.json")["training"]?.objectValue)
        #expect(checkpoint.names == expected.map(\.name).sorted())
        for (name, tensor) in expected {
            #expect(
                try checkpoint.floats(named: name, shape: tensor["shape"]?.integers ?? []) == tensor["values"]?.floats
            )
        }
        #expect(checkpoint.files[0].metadata["global_step"] == "875000")
        let embedding = try WeightFile(path: Fixture.directory + "/torch/embedding.pt")
        #expect(embedding.entries.keys.sorted() == ["string_to_param.*"])
    }

    @Test func partsAndTransposesOfStoredTensorsAreRead() throws {
        let values = (0..<24).map(Float.init)
        let directory = try TemporaryDirectory()
        let file = try directory.write(
            torchFile([SafetensorsTensor(name: "x", shape: [6, 4], values: values)]),
            to: "x.ckpt"
        )
        let files = [try WeightFile(path: file)]
        for index in 0..<3 {
            let part = try Checkpoint(source: "x", files: files) { name in
                [StoredTensor("none"), StoredTensor(name, part: .init(index: index, count: 3))]
            }
            #expect(try part.floats(named: "x", shape: [2, 4]) == Array(values[(8 * index)..<(8 * index + 8)]))
            #expect(throws: WeightsError.self) { try part.floats(named: "x", shape: [6, 4]) }
        }
        let transposed = try Checkpoint(source: "x", files: files) { [StoredTensor($0, isTransposed: true)] }
        #expect(try transposed.floats(named: "x", shape: [4, 6]) == (0..<24).map { Float($0 % 6 * 4 + $0 / 6) })
        let uneven = try Checkpoint(source: "x", files: files) { [StoredTensor($0, part: .init(index: 0, count: 5))] }
        #expect(throws: WeightsError.self) { try uneven.floats(named: "x", shape: [1, 4]) }
    }

    @Test func large64BitArchivesAndCompressedPicklesAreRead() throws {
        var pickle = PickleWriter()
        pickle.raw("}")
        pickle.text("w")
        pickle.tensor(key: "0", count: 2, shape: [2])
        pickle.raw("s.")
        for (isZip64, deflated) in [(true, false), (false, true), (true, true)] {
            var archive = ZipWriter(isZip64: isZip64)
            archive.add("data.pkl", pickle.bytes, deflated: deflated)
            archive.add("data/0", [0, 0, 0x80, 0x3F, 0, 0, 0, 0x40])
            archive.add("byteorder", Array("little".utf8))
            let contents = try contents(archive.finished(comment: "a comment"))
            #expect(contents.entries["w"]?.shape == [2])
        }
    }

    // MARK: - What wants to run

    /// Programs and the name each is refused for.
    @Test(
        arguments: [
            ([0x80, 2] + Array("cos\nsystem\nX\u{2}\0\0\0id".utf8) + [0x85, 0x52, 0x2E], "os.system"),
            ([0x80, 2] + Array("cposix\nsystem\n".utf8), "posix.system"),
            ([0x80, 2] + Array("cbuiltins\neval\n".utf8), "builtins.eval"),
            ([0x80, 2] + Array("c__builtin__\nexec\n".utf8), "__builtin__.exec"),
            ([0x80, 2] + Array("cbuiltins\ngetattr\n".utf8), "builtins.getattr"),
            ([0x80, 2] + Array("csubprocess\nPopen\n".utf8), "subprocess.Popen"),
            ([0x80, 2] + Array("ctorch\nload\n".utf8), "torch.load"),
            ([0x80, 2] + Array("ctorch.hub\nload\n".utf8), "torch.hub.load"),
            ([0x80, 2] + Array("ctorch.storage\n_load_from_bytes\n".utf8), "torch.storage._load_from_bytes"),
            (
                [0x80, 2] + Array("ctorch._utils\n_rebuild_tensor_v2.__globals__\n".utf8),
                "_rebuild_tensor_v2.__globals__"
            ),
            ([0x80, 2] + Array("cnumpy\nos.system\n".utf8), "numpy.os.system"),
            ([0x80, 2] + Array("ccollections\nOrderedDict\u{7}\n".utf8), "collections.OrderedDict?"),
            // Protocol 4 takes the name from the stack.
            ([0x80, 4, 0x8C, 2] + Array("os".utf8) + [0x8C, 6] + Array("system".utf8) + [0x93], "os.system"),
            // A name hidden behind a harmless one, and one that a harmless one is called with.
            ([0x80, 2] + Array("ccollections\nOrderedDict\n)Rcnt\nsystem\n".utf8), "nt.system"),
            ([0x80, 2] + Array("ccollections\nOrderedDict\n(cos\nremove\n".utf8), "os.remove"),
        ] as [([UInt8], String)]
    )
    func programsAreRefusedByName(pickle: [UInt8], name: String) throws {
        for bytes in [archive(pickle), pickle] {
            let error = try error(bytes)
            #expect(error.description.contains("wants `") && error.description.contains(name), "\(error)")
            #expect(error.description.contains("nothing was executed"))
        }
    }

    /// Files from before the archive: each of their pickles is looked at before anything is advised.
    @Test func oldFilesAreRefusedByWhatTheyWant() throws {
        let header: [UInt8] = [0x80, 2, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E]
        let version: [UInt8] = [0x80, 2, 0x4D, 0xE9, 0x03, 0x2E]
        let system: [UInt8] = [0x80, 2, 0x7D, 0x2E]
        let evil = [0x80, 2] + Array("cposix\nsystem\n)R.".utf8)
        #expect(try error(header + version + system + evil).description.contains("wants `posix.system`"))
        #expect(try error(header + version + system + [0x80, 2, 0x5D, 0x2E]).description.contains("weights_only=True"))
        // The first protocol begins with an import, not with a number.
        #expect(
            try error(Array("cposix\nsystem\np0\n(Vls\np1\ntp2\nRp3\n.".utf8)).description.contains(
                "wants `posix.system`"
            )
        )
        #expect(try error(Array("cposix system, and no pickle at all".utf8)).description.contains("header"))
    }

    /// Instructions that could run something without naming it first, and those no tensor needs.
    @Test(arguments: [
        ("(ios\nsystem\n.", "INST"), ("(cos\nsystem\no.", "os.system"), ("(ccollections\nOrderedDict\no.", "OBJ"),
        ("\u{0}\u{82}\u{1}.", "instruction"), ("X\u{1}\0\0\0x)R.", "calls what it has not imported"),
        (")R.", "has not made"),
        ("ctorch\nFloatStorage\n)R.", "no function"), ("ctorch\nFloatStorage\n}b.", "sets the state"),
        ("Pevil\n.", "PERSID"),
        ("X\u{1}\0\0\0xQ.", "storage"),
        ("(X\u{7}\0\0\0storagecbuiltins\nset\nX\u{1}\0\0\00X\u{3}\0\0\0cpuK\u{2}tQ.", "storage"),
        ("ctorch._utils\n_rebuild_tensor_v2\n)R.", "shape"),
        ("ctorch._utils\n_rebuild_parameter\n(Nt\u{52}.", "no tensor"),
        ("h\u{5}.", "has not made"), ("]X\u{1}\0\0\0xX\u{1}\0\0\0ys.", "no dictionary"),
        ("}X\u{1}\0\0\0xa.", "no list"),
        ("}(X\u{1}\0\0\0xu.", "without a value"), ("t.", "without a beginning"), ("(0N0.", "has not made"),
        ("", "ends"),
        ("X\u{7F}\u{7F}\u{7F}\u{7F}x", "ends"), ("cos", "ends"), ("cos\nsystem", "ends"),
    ])
    func otherInstructionsAreErrors(program: String, reason: String) throws {
        let error = try error(archive([0x80, 2] + program.unicodeScalars.map { UInt8($0.value) }))
        #expect(error.description.contains(reason) && error.description.hasPrefix("x.ckpt: "), "\(error)")
    }

    @Test func statesOfObjectsAreDropped() throws {
        // A state_dict carries `_metadata` as a state; it is neither set nor asked for.
        var pickle = PickleWriter()
        pickle.global("collections", "OrderedDict")
        pickle.raw(")R")
        pickle.text("w")
        pickle.tensor(key: "0", count: 2, shape: [2])
        pickle.raw("s}")
        pickle.text("__setstate__")
        pickle.global("torch", "FloatStorage")
        pickle.raw("sb.")
        #expect(try contents(archive(pickle.bytes)).entries.keys.sorted() == ["w"])
    }

    @Test func deepAndCircularStructuresEnd() throws {
        let count = 200_000
        // Lists in lists, tuples in tuples, and marks; each released without deep recursion.
        for program in [
            [UInt8](repeating: 0x5D, count: count) + [UInt8](repeating: 0x61, count: count - 1),
            [0x29] + [UInt8](repeating: 0x85, count: count), [UInt8](repeating: 0x28, count: count),
        ] {
            #expect(throws: WeightsError.self) { try contents(archive([0x80, 2] + program + [0x2E])) }
        }
        // Ten dictionaries, each of which has all of them as members a hundred times.
        var pickle = PickleWriter()
        for index in 0..<10 { pickle.raw([0x7D, 0x71, UInt8(index)]) }
        for index in 0..<10 {
            pickle.raw([0x68, UInt8(index), 0x28])
            for member in 0..<1000 {
                pickle.text("\(member)")
                pickle.raw([0x68, UInt8(member % 10)])
            }
            pickle.raw("u")
        }
        pickle.text("w")
        pickle.tensor(key: "0", count: 2, shape: [2])
        pickle.raw("s.")
        #expect(try contents(archive(pickle.bytes)).entries.values.map(\.shape) == [[2]])
    }

    @Test func aPickleThatGrowsWithoutEndIsRefused() throws {
        let error = try error(archive([0x80, 2] + [UInt8](repeating: 0x4E, count: (2 << 20) + 1) + [0x2E]))
        #expect(error.description.contains("values"), "\(error)")
    }

    @Test func whatIsRememberedCountsAsWell() throws {
        for instruction in [0x94, 0x28] as [UInt8] {
            let program = [0x80, 4, 0x4E] + [UInt8](repeating: instruction, count: (2 << 20) + 1) + [0x2E]
            let error = try error(archive(program))
            #expect(error.description.contains("values"), "\(error)")
        }
        // One long name within another.
        var pickle = PickleWriter()
        pickle.raw("}(")
        pickle.text(String(repeating: "x", count: 2000))
        pickle.raw("}(")
        pickle.text("w")
        pickle.tensor(key: "0", count: 2, shape: [2])
        pickle.raw("uu.")
        #expect(try error(archive(pickle.bytes)).description.contains("no tensors"))
    }

    // MARK: - Tensors that lie

    @Test(
        arguments: [
            (2, 0, [3], nil, "larger than its storage"), (2, 2, [1], nil, "larger than its storage"),
            (4, 0, [4], nil, "ends at byte"), (2, 0, [1 << 62, 4], nil, "larger than its storage"),
            (2, 0, [2], [1 << 62], "larger than its storage"), (2, -1, [1], nil, "larger than its storage"),
            (2, 0, [-2], nil, "no storage, offset, shape"), (2, 0, [2], [-1], "no storage, offset, shape"),
            (2, 0, [2], [1, 1], "no storage, offset, shape"), (-2, 0, [0], nil, "storage is not described"),
            (Int.max, 1 << 62, [1], nil, "ends at byte"),
        ] as [(Int, Int, [Int], [Int]?, String)]
    )
    func tensorsBeyondTheirStorageAreErrors(
        count: Int,
        offset: Int,
        shape: [Int],
        strides: [Int]?,
        reason: String
    ) throws {
        var pickle = PickleWriter()
        pickle.raw("}")
        pickle.text("w")
        pickle.tensor(key: "0", count: count, offset: offset, shape: shape, strides: strides)
        pickle.raw("s.")
        let error = try error(archive(pickle.bytes))
        #expect(error.description.contains(reason), "\(error)")
    }

    @Test func aMissingStorageIsNamed() throws {
        var pickle = PickleWriter()
        pickle.raw("}")
        pickle.text("w")
        pickle.tensor(key: "../../etc/passwd", count: 2, shape: [2])
        pickle.raw("s.")
        #expect(
            try error(archive(pickle.bytes)).description.contains("\"w\": the archive has no data/../../etc/passwd")
        )
    }

    // MARK: - Archives

    private static let goodPickle: [UInt8] = {
        var pickle = PickleWriter()
        pickle.raw("}")
        pickle.text("w")
        pickle.tensor(key: "0", count: 2, shape: [2])
        pickle.raw("s.")
        return pickle.bytes
    }()

    private static func zip(
        _ entries: [(String, [UInt8], Bool, ZipWriter.Lies)],
        isZip64: Bool = false
    ) -> [UInt8] {
        var archive = ZipWriter(isZip64: isZip64)
        for (name, bytes, deflated, lies) in entries { archive.add(name, bytes, deflated: deflated, lies) }
        return archive.finished()
    }

    private static let storage = [UInt8](repeating: 0, count: 8)

    @Test(
        arguments: [
            (zip([]), "zip archive of 0 files"),
            (
                zip([("readme.txt", [1], false, .init())]),
                "zip archive of 1 files (readme.txt), none of them PyTorch's data.pkl"
            ),
            (zip([("a/data.pkl", [], false, .init()), ("b/data.pkl", [], false, .init())]), "2 pickles"),
            (zip([("m/model_index.json", [], false, .init())]), "unpack it"),
            (zip([("m/data.pkl", [], false, .init()), ("m/code/x.py", [], false, .init())]), "TorchScript"),
            (zip([("m/data.pkl", [0x80, 2, 0x7D, 0x2E], false, .init())]), "no tensors"),
            (
                zip([("m/data.pkl", goodPickle, false, .init()), ("m/byteorder", Array("big".utf8), false, .init())]),
                "big-endian"
            ),
            (
                zip([("m/data.pkl", goodPickle, false, .init()), ("m/data/0", storage, true, .init())]),
                "tensors are compressed"
            ),
            (
                zip([("m/data.pkl", goodPickle, false, .init()), ("m/data/0", storage, false, .init(flags: 1))]),
                "tensors are encrypted"
            ), (zip([("m/data.pkl", goodPickle, false, .init(flags: 1))]), "encrypted"),
            (zip([("m/data.pkl", goodPickle, false, .init(size: 3))]), "sizes differ"),
            // Bombs: a size that is a lie in either direction, and one that is honest.
            (zip([("m/data.pkl", goodPickle, true, .init(size: 4_000_000_000))]), "unpacks to 4000000000 bytes"),
            (zip([("m/data.pkl", [UInt8](repeating: 0, count: 1 << 20), true, .init(size: 64))]), "damaged"),
            (zip([("m/data.pkl", goodPickle, true, .init(size: 60_000_000))]), "damaged"),
            (zip([("m/data.pkl", goodPickle, false, .init(localName: "m/data.pkx"))]), "another name"),
            (zip([("a", [1], false, .init()), ("a", [2], false, .init())]), "twice"),
            (
                zip([("a", [1], false, .init()), ("b", [2], false, .init(localName: "a", localOffset: 0))]),
                "another name"
            ),
            (zip([("a", [1], false, .init(localOffset: 4_000_000))]), "not where the directory says"),
            (Array("PK".utf8), "truncated"), (Array("PK\u{3}\u{4} and no more".utf8), "truncated"),
            (Array("<!DOCTYPE html><html>".utf8), "web page"),
            (
                [0x80, 2, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E],
                "before version 1.6"
            ),
            ([0x80, 2, 0x7D, 0x2E, 0, 0, 0, 0, 0, 0], "without PyTorch's zip archive"),
            (
                [UInt8](repeating: 0, count: 257) + Array("ustar\u{0}".utf8) + [UInt8](repeating: 0, count: 300),
                "tar archive"
            ),
        ] as [([UInt8], String)]
    )
    func archivesThatAreNoCheckpointSayWhatTheyAre(bytes: [UInt8], reason: String) throws {
        let error = try error(bytes)
        #expect(error.description.contains(reason) && error.description.hasPrefix("x.ckpt: "), "\(error)")
    }

    @Test func overlappingEntriesAreErrors() throws {
        // The second entry's header stands within the bytes of the first.
        var inner = ZipWriter()
        inner.add("b", [7])
        let header = Array(inner.finished().prefix(38))
        var archive = ZipWriter()
        archive.add("a", header)
        archive.add("b", [7], .init(localOffset: 37))
        let error = try error(archive.finished())
        #expect(error.description.contains("overlaps"), "\(error)")
    }

    @Test func everyTruncationIsAnError() throws {
        let whole = torchFile([SafetensorsTensor(name: "w", shape: [2], values: [1, 2])], numbers: ["global_step": 1])
        #expect(try contents(whole).entries.count == 1)
        for count in 0..<whole.count {
            #expect(throws: WeightsError.self, "\(count) bytes") { try contents(Array(whole.prefix(count))) }
        }
    }

    /// Whatever a damaged file says, it is an error or every tensor lies within the file.
    @Test func randomDamageNeverLeadsOutsideTheFile() throws {
        let plain = [
            SafetensorsTensor(name: "first.weight", shape: [2, 3], values: [1, 2, 3, 4, 5, 6]),
            SafetensorsTensor(name: "second", shape: [2], values: [7, 8]),
        ]
        var compressed = ZipWriter(isZip64: true)
        compressed.add("x/data.pkl", Self.goodPickle, deflated: true)
        compressed.add("x/data/0", Self.storage)
        var samples = [torchFile(plain, numbers: ["global_step": 9]), compressed.finished()]
        samples.append(try Fixture.bytes("torch/training.ckpt"))
        samples.append(try Fixture.bytes("torch/protocol-4.bin"))
        var generator = TorchGenerator(seed: 11)
        var accepted = 0
        for round in 0..<3000 {
            var bytes = samples[round % samples.count]
            for _ in 0...(round % 4) {
                let position = Int(generator.word()) % bytes.count
                switch generator.word() % 4 {
                case 0: bytes[position] ^= 1 << UInt8(generator.word() % 8)
                case 1: bytes[position] = [0, 0xFF, 0x7F, 0x80, 0x28, 0x52, 0x62, 0x2E][Int(generator.word() % 8)]
                case 2: bytes.remove(at: position)
                default: bytes.insert(UInt8(truncatingIfNeeded: generator.word()), at: position)
                }
            }
            do {
                for (name, entry) in try contents(bytes).entries {
                    let size = Self.sizes[entry.typeName] ?? 0
                    #expect(entry.range.lowerBound >= 0 && entry.range.upperBound <= bytes.count, "\(round) \(name)")
                    #expect(entry.strides != nil || entry.range.count == entry.count * size, "\(round) \(name)")
                }
                accepted += 1
            } catch {
                #expect(error is WeightsError, "\(round): \(error)")
            }
        }
        // Weights and names may change freely, so some files stay valid, and most do not.
        #expect(accepted > 100 && accepted < 2000, "\(accepted)")
    }

    /// Pickles alone, in which every mutation meets the machine.
    @Test func randomPicklesEnd() throws {
        let samples = try ["protocol-2.bin", "protocol-5.bin", "training.ckpt"].map { name in
            let bytes = try Fixture.bytes("torch/" + name)
            return try bytes.withUnsafeBytes { buffer in
                let archive = try ZipArchive(buffer)
                let entry = try #require(archive.entries.first { $0.key.hasSuffix("data.pkl") }?.value)
                return try ZipArchive.contents(of: entry, in: buffer, maximumBytes: 1 << 20)
            }
        }
        var generator = TorchGenerator(seed: 12)
        var accepted = 0
        for round in 0..<2000 {
            var bytes = samples[round % samples.count]
            for _ in 0...(round % 3) {
                let position = 2 + Int(generator.word()) % (bytes.count - 2)
                if generator.word() % 2 == 0 {
                    bytes[position] = UInt8(truncatingIfNeeded: generator.word())
                } else {
                    bytes.remove(at: position)
                }
            }
            do {
                _ = try bytes.withUnsafeBytes { try Pickle($0) }
                accepted += 1
            } catch {
                #expect(error is PickleError, "\(round): \(error)")
            }
        }
        #expect(accepted > 40 && accepted < 1500, "\(accepted)")
    }
}
