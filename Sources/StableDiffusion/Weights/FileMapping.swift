// A whole file in the address space of the process: weights are read where they lie, without a copy.

internal import Glibc

/// A file mapped for reading, until the last reference goes.
final class FileMapping: Sendable {
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
