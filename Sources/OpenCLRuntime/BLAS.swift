// CLBlast on this runtime's buffers.

internal import COpenCL

extension CommandQueue {
    /// y = x wᵀ in float32: the matrix product of a linear layer.
    ///
    /// The corresponding CLBlast function is `CLBlastSgemm`.
    ///
    /// - Parameters:
    ///   - x: `[m, k]`, row-major float.
    ///   - w: `[n, k]`, row-major float, as checkpoints store it.
    ///   - y: `[m, n]`, row-major float; written.
    /// - Throws: `OpenCLError`.
    public func sgemm(x: Buffer, w: Buffer, y: Buffer, m: Int, n: Int, k: Int) throws(OpenCLError) {
        if isDryRun { return }
        if !isUpToDate {
            return perform { [unowned self] in try sgemm(x: x, w: w, y: y, m: m, n: n, k: k) }
        }
        var queue: cl_command_queue? = handle
        let status = CLBlastSgemm(
            CLBlastLayoutRowMajor,
            CLBlastTransposeNo,
            CLBlastTransposeYes,
            m,
            n,
            k,
            1,
            x.handle,
            0,
            k,
            w.handle,
            0,
            k,
            0,
            y.handle,
            0,
            n,
            &queue,
            nil
        )
        try check(cl_int(status.rawValue), "CLBlastSgemm", "m \(m), n \(n), k \(k)")
    }
}
