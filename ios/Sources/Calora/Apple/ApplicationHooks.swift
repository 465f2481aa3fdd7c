#if canImport(UIKit) && !os(watchOS)
    import Foundation
    import UIKit

    /// Tells an engine of memory warnings and of leaving the foreground, for as long as the hooks are kept.
    ///
    /// ```swift
    /// let hooks = ApplicationHooks(engine)   // a property of whatever owns the engine
    /// ```
    ///
    /// An app with permission to use the GPU in the background leaves the hooks out and calls ``Engine/handle(_:)`` for
    /// memory warnings itself.
    public final class ApplicationHooks: Sendable {
        private let registration: Registration

        /// Begins to listen.
        @MainActor
        public init(_ engine: Engine) {
            let events: [(Notification.Name, AppEvent)] = [
                (UIApplication.didReceiveMemoryWarningNotification, .memoryWarning),
                (UIApplication.didEnterBackgroundNotification, .didEnterBackground),
                (UIApplication.willEnterForegroundNotification, .willEnterForeground),
            ]
            // One after another: a quick return to the foreground must not be overtaken by the pause before it.
            let (queue, continuation) = AsyncStream.makeStream(of: AppEvent.self)
            let observers = events.map { name, event in
                NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in
                    continuation.yield(event)
                }
            }
            registration = Registration(observers, continuation)
            Task { [weak engine] in
                for await event in queue {
                    await engine?.handle(event)
                }
            }
        }
    }

    /// What must be undone when the hooks go.
    private final class Registration: @unchecked Sendable {
        private let observers: [any NSObjectProtocol]
        private let events: AsyncStream<AppEvent>.Continuation

        init(_ observers: [any NSObjectProtocol], _ events: AsyncStream<AppEvent>.Continuation) {
            self.observers = observers
            self.events = events
        }

        deinit {
            for observer in observers { NotificationCenter.default.removeObserver(observer) }
            events.finish()
        }
    }
#endif
