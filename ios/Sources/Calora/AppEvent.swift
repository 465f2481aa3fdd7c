/// What an app learns from the system and the engine should know.
public enum AppEvent: Sendable, Hashable, CaseIterable {
    /// The system wants memory back.
    case memoryWarning
    /// The app has left the foreground; iOS ends an app whose GPU work goes on.
    case didEnterBackground
    /// The app comes back.
    case willEnterForeground
}

extension Engine {
    /// Does what an event asks for: frees what can be computed anew, pauses, goes on. Nothing on a closed engine.
    ///
    /// `ApplicationHooks` calls it for UIKit's notifications.
    public func handle(_ event: AppEvent) async {
        switch event {
        case .memoryWarning: _ = try? await trim(.critical)
        case .didEnterBackground: try? await pause()
        case .willEnterForeground: try? resume()
        }
    }
}
