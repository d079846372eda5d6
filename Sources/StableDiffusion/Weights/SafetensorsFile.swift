// One safetensors file, mapped into memory. The header is checked completely when the file is opened, so that reading a
// tensor later can neither leave the file nor overlap another tensor. Format: eight bytes with the length of the header
// (little-endian), the header as JSON, then the tensors' bytes without gaps.

internal import Glibc
internal import JSON

/// A mapped, checked safetensors file.
///
/// Safe to read from several threads.
///
/// The file must not be made shorter while it is open; pages that vanish end the process, as with every mapping.
package final class SafetensorsFile: Sendable {
    /// Where a tensor lies in a file and what it is.
    package struct Entry: Sendable, Equatable {
        /// Element type as the header spells it.
        package let typeName: String
        /// Element type, if it is one this program knows.
        package let type: WeightType?
        /// Shape, outermost dimension first; empty for a scalar.
        package let shape: [Int]
        /// Bytes within the file.
        package let range: Range<Int>
    }

    /// The file's path.
    package let path: String
    /// Tensors by name.
    package let entries: [String: Entry]
    private let mapping: FileMapping

    /// The reference implementation's limit, which keeps a damaged length from allocating gigabytes.
    private static let maximumHeaderBytes = 100_000_000

    /// Maps a file and checks its header.
    package init(path: String) throws(WeightsError) {
        self.path = path
        mapping = try FileMapping(path: path)
        entries = try Self.entries(in: mapping.bytes, path: path)
    }

    /// Gives the stored bytes of a tensor, at any alignment, to `body`.
    ///
    /// The pointer is valid only within it. The pages of a large tensor leave the process's memory afterwards (they stay in the system's page
    /// cache): a model on its way to the device is not to be resident twice.
    package func withBytes<Result>(
        of entry: Entry,
        _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        // The mapping ends with its owner, which the optimiser may release after the last use of `self`.
        try withExtendedLifetime(mapping) {
            defer { mapping.releasePages(entry.range) }
            return try body(UnsafeRawBufferPointer(rebasing: mapping.bytes[entry.range]))
        }
    }

    private static func entries(
        in bytes: UnsafeRawBufferPointer,
        path: String
    ) throws(WeightsError) -> [String: Entry] {
        let prefixBytes = MemoryLayout<UInt64>.size
        guard bytes.count >= prefixBytes else {
            throw .truncated(file: path, reason: "it has \(bytes.count) bytes, less than the length of a header")
        }
        // What a clone without Git LFS leaves in place of a large file.
        if bytes.starts(with: Array("version https://git-lfs".utf8)) {
            throw .malformed(
                file: path,
                reason: "it is a Git LFS pointer; run \"git lfs pull\", or download the file itself"
            )
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
        var entries: [String: Entry] = [:]
        for (name, value) in members where name != "__metadata__" {
            do {
                entries[name] = try entry(value, dataStart: dataStart)
            } catch {
                throw .malformed(file: path, reason: "tensor \"\(name.prefix(200))\": \(error.reason)")
            }
        }
        try checkLayout(entries, dataStart: dataStart, end: bytes.count, path: path)
        return entries
    }

    private struct EntryError: Error {
        let reason: String
    }

    private static func entry(_ value: JSONValue, dataStart: Int) throws(EntryError) -> Entry {
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
        return Entry(typeName: typeName, type: type, shape: shape, range: (last - (end - begin))..<last)
    }

    /// Tensors must fill the file from the header's end to its own, each byte once.
    private static func checkLayout(
        _ entries: [String: Entry],
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

/// A file mapped for reading, until the last reference goes.
private final class FileMapping: Sendable {
    /// The whole file.
    ///
    /// Never written to, and unmapped only in `deinit`, hence safe to share.
    nonisolated(unsafe) let bytes: UnsafeRawBufferPointer

    init(path: String) throws(WeightsError) {
        let file: OpenFile
        do {
            file = try openForReading(path)
        } catch {
            throw .unreadable(file: path, reason: error.reason)
        }
        defer { close(file.number) }
        // The system refuses to map nothing.
        guard file.size > 0 else { throw .truncated(file: path, reason: "it is empty") }
        guard let address = mmap(nil, file.size, PROT_READ, MAP_PRIVATE, file.number, 0), address != MAP_FAILED else {
            throw .unreadable(
                file: path,
                reason: "the file cannot be mapped into memory (\(String(cString: strerror(errno))))"
            )
        }
        bytes = UnsafeRawBufferPointer(start: address, count: file.size)
    }

    /// Takes the pages that lie wholly in a range out of the process's memory; touched again, they are mapped again.
    func releasePages(_ range: Range<Int>) {
        // The mapping begins with a page, so offsets are aligned where addresses are.
        let pageSize = Int(getpagesize())
        let first = (range.lowerBound + pageSize - 1) / pageSize * pageSize
        let end = range.upperBound / pageSize * pageSize
        guard first < end, let base = bytes.baseAddress else { return }
        madvise(UnsafeMutableRawPointer(mutating: base + first), end - first, MADV_DONTNEED)
    }

    deinit {
        munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress), bytes.count)
    }
}
