// The safetensors format. The header is checked completely when a file is opened, so that reading a tensor later can
// neither leave the file nor overlap another tensor. Eight bytes with the length of the header (little-endian), the header
// as JSON, then the tensors' bytes without gaps.

internal import JSON

/// Reads the header of a safetensors file.
enum Safetensors {
    /// The reference implementation's limit, which keeps a damaged length from allocating gigabytes.
    private static let maximumHeaderBytes = 100_000_000

    /// The tensors of a file and what its header says about itself (`__metadata__`).
    ///
    /// - Parameters:
    ///   - bytes: The whole file.
    ///   - path: For messages.
    static func contents(of bytes: UnsafeRawBufferPointer, path: String) throws(WeightsError) -> WeightFile.Contents {
        let prefixBytes = MemoryLayout<UInt64>.size
        guard bytes.count >= prefixBytes else {
            throw .truncated(file: path, reason: "it has \(bytes.count) bytes, less than the length of a header")
        }
        let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard length <= UInt64(maximumHeaderBytes) else {
            throw .malformed(file: path, reason: "it claims a header of \(length) bytes")
        }
        let dataStart = prefixBytes + Int(length)
        guard dataStart <= bytes.count else {
            throw .truncated(
                file: path,
                reason: "the header ends at byte \(dataStart), the file at byte \(bytes.count)"
            )
        }
        let header: JSONValue
        do {
            header = try JSONValue(parsing: UnsafeRawBufferPointer(rebasing: bytes[prefixBytes..<dataStart]))
        } catch {
            throw .malformed(file: path, reason: "the header is not valid JSON (\(error))")
        }
        guard case .object(let members) = header else {
            throw .malformed(file: path, reason: "the header is not a JSON object")
        }
        var entries: [String: WeightFile.Entry] = [:]
        for (name, value) in members where name != "__metadata__" {
            do {
                entries[name] = try entry(value, dataStart: dataStart)
            } catch {
                throw .malformed(file: path, reason: "tensor \"\(name.prefix(200))\": \(error.reason)")
            }
        }
        try checkLayout(entries, dataStart: dataStart, end: bytes.count, path: path)
        var metadata: [String: String] = [:]
        for (key, value) in members["__metadata__"]?.objectValue ?? [:] { metadata[key] = value.stringValue }
        return WeightFile.Contents(format: .safetensors, entries: entries, metadata: metadata)
    }

    private struct EntryError: Error {
        let reason: String
    }

    private static func entry(_ value: JSONValue, dataStart: Int) throws(EntryError) -> WeightFile.Entry {
        guard let typeName = value["dtype"]?.stringValue else { throw EntryError(reason: "it has no dtype") }
        guard let dimensions = value["shape"]?.arrayValue else { throw EntryError(reason: "it has no shape") }
        var shape: [Int] = []
        var count = 1
        for dimension in dimensions {
            guard case .number(let literal) = dimension, let size = Int(literal), size >= 0 else {
                throw EntryError(reason: "its shape has the dimension \(dimension)")
            }
            let (product, overflow) = count.multipliedReportingOverflow(by: size)
            guard !overflow else { throw EntryError(reason: "its shape is larger than any memory") }
            count = product
            shape.append(size)
        }
        guard let offsets = value["data_offsets"]?.arrayValue, offsets.count == 2,
            case .number(let first) = offsets[0], let begin = Int(first),
            case .number(let second) = offsets[1], let end = Int(second), 0 <= begin, begin <= end
        else { throw EntryError(reason: "its data_offsets are not two ascending numbers") }
        let type = WeightType(rawValue: typeName)
        if let type {
            let (byteCount, overflow) = count.multipliedReportingOverflow(by: type.size)
            guard !overflow, byteCount == end - begin else {
                throw EntryError(reason: "\(typeName) \(shape) does not fit its \(end - begin) bytes")
            }
        }
        let (last, overflow) = end.addingReportingOverflow(dataStart)
        guard !overflow else { throw EntryError(reason: "its data_offsets are larger than any file") }
        return WeightFile.Entry(typeName: typeName, type: type, shape: shape, range: (last - (end - begin))..<last)
    }

    /// Tensors must fill the file from the header's end to its own, each byte once.
    private static func checkLayout(
        _ entries: [String: WeightFile.Entry],
        dataStart: Int,
        end: Int,
        path: String
    ) throws(WeightsError) {
        let ordered = entries.sorted {
            ($0.value.range.lowerBound, $0.value.range.upperBound)
                < ($1.value.range.lowerBound, $1.value.range.upperBound)
        }
        var position = dataStart
        for (name, entry) in ordered {
            let name = name.prefix(200)
            guard entry.range.upperBound <= end else {
                throw .truncated(
                    file: path,
                    reason: "tensor \"\(name)\" ends at byte \(entry.range.upperBound), the file at byte \(end)"
                )
            }
            guard entry.range.lowerBound == position else {
                let fault = entry.range.lowerBound < position ? "overlaps another tensor" : "leaves a gap before it"
                throw .malformed(file: path, reason: "tensor \"\(name)\" \(fault)")
            }
            position = entry.range.upperBound
        }
        guard position == end else {
            throw .malformed(file: path, reason: "\(end - position) bytes after the last tensor belong to none")
        }
    }
}
