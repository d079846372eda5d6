// Stands around every route: turns errors into answers, tells a wrong method from an unknown path, counts and logs.

internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import Logging

/// Answers errors and counts requests.
struct RequestMiddleware<Context: RequestContext>: RouterMiddleware {
    let metrics: Metrics
    /// Paths and methods that exist.
    let routes: RouteIndex

    func handle(
        _ request: Request,
        context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        var response: Response
        do {
            response = try await next(request, context)
        } catch let error as HTTPError where error.status == .notFound && error.body == nil {
            // The router's own 404, which it also gives for a wrong method.
            let allowed = routes.methods(forPath: request.uri.path)
            response = answer(
                allowed.isEmpty ? HTTPProblem.notFound : .methodNotAllowed(allowed),
                context: context
            )
        } catch {
            response = answer(error, context: context)
        }
        if request.method == .head {
            // The length tells what GET would send; there is nothing after the head.
            response = response.createHeadResponse()
        }
        metrics.countRequest(
            method: request.method.rawValue,
            route: routes.template(forPath: request.uri.path) ?? "other",
            status: response.status.code
        )
        context.logger.debug(
            "request",
            metadata: [
                "method": "\(request.method.rawValue)", "path": "\(request.uri.path)",
                "status": "\(response.status.code)",
            ]
        )
        return response
    }

    private func answer(_ error: any Error, context: Context) -> Response {
        if let response = Response(problem: error) { return response }
        context.logger.error("a request failed by a mistake in the program", metadata: ["error": "\(error)"])
        return Response(
            status: .internalServerError,
            json: ["detail": "Internal Server Error. The daemon's log has the details."]
        )
    }
}
